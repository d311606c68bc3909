"""From files with labels to sets of images: in memory where they fit, else read from disk again and again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import Tensor

from metamixer.core.text import clean
from metamixer.data.errors import DataError, ImageError
from metamixer.data.files.image_file import Header, Source, read_header, read_image
from metamixer.data.files.streaming import FolderImages
from metamixer.data.image_set import TensorImages

T = TypeVar("T")
Skipped = tuple[tuple[str, str], ...]
Sets = dict[str, TensorImages] | dict[str, FolderImages]

NATIVE_SIDE = 96
DEFAULT_SIZE = (224, 224)
CHUNK = 32


@dataclass(frozen=True)
class Reading:
    """How to read files.

    Args:
        image_size: height and width; None: the size of the files if all have one and no side is above 96
            pixels, else 224 x 224.
        channels: 1 or 3; None: 1 if all files are grey, else 3.
        on_error: ``stop`` at files that cannot be read, or ``skip`` and list them.
        cache_limit_bytes: up to here all pixels are held in memory.
    """

    image_size: tuple[int, int] | None = None
    channels: int | None = None
    on_error: Literal["stop", "skip"] = "stop"
    cache_limit_bytes: int = 2 * 1024**3

    def __post_init__(self) -> None:
        if self.on_error not in ("stop", "skip"):
            raise DataError(f"on_error={self.on_error!r} is not known; 'stop' or 'skip' would work")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels={self.channels!r} does not work; 1 (grey), 3 (colour) or None would")


class _Bad(list[tuple[str, str]]):
    """Name and cause of every file that could not be read."""

    def stop(self, how: Reading) -> None:
        if self and how.on_error == "stop":
            first = "\n".join(f"  {name}: {cause}" for name, cause in self[:5])
            more = f"\n  and {len(self) - 5} more" if len(self) > 5 else ""
            raise DataError(
                f"{len(self)} files cannot be read; mend or remove them, or pass on_error='skip':\n{first}{more}"
            )

    def attempt(
        self,
        task: Callable[[Source, str, int], T],
        part: str,
        files: Sequence[Source],
        rows: Sequence[int],
        threads: int = 0,
    ) -> dict[int, T]:
        """What the task returns for every row that it can do; the others are noted here. 0 threads: one a core."""

        def some(rows: Sequence[int]) -> list[tuple[int, T | ImageError]]:
            results: list[tuple[int, T | ImageError]] = []
            for row in rows:
                source = files[row]
                try:
                    results.append((row, task(source, _name(part, row, source), row)))
                except ImageError as error:
                    results.append((row, error))
            return results

        done: dict[int, T] = {}
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        with ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1)) as pool:
            for row, result in chain.from_iterable(pool.map(some, chunks)):
                if isinstance(result, ImageError):
                    name = _name(part, row, files[row])
                    self.append((name, str(result).removeprefix(f"{name}: ")))
                else:
                    done[row] = result
        return done


def _name(part: str, row: int, source: Source) -> str:
    return clean(source) if isinstance(source, Path) else f"{part} image {row}"


def read(
    parts: Mapping[str, tuple[Sequence[Source], Tensor]], classes: tuple[str, ...], how: Reading
) -> tuple[Sets, Skipped]:
    """Read the files of all splits.

    Every header is read first: it settles size, channels and whether all fits into memory, and refuses what
    is no image. If it fits, every image is decoded once. If not, images are decoded here only for
    ``on_error="skip"``, to find the damaged ones: which images a set holds may not change in the middle of
    training.

    Args:
        parts: for every split its files and ``(N,)`` int64 labels.
        classes: the name of every class.
        how: size, channels, and what to do with damaged files.

    Returns:
        The splits, all in memory or all on disk; and name and cause of every file that was skipped.

    Raises:
        DataError: names the first files that cannot be read, with their causes, and says how many there are.
    """
    bad = _Bad()
    # One thread: a header is parsed in Python, where threads only get into each other's way.
    headers = {
        part: bad.attempt(lambda source, name, _: read_header(source, name), part, files, range(len(files)), threads=1)
        for part, (files, _) in parts.items()
    }
    bad.stop(how)
    size, channels = _settle([header for found in headers.values() for header in found.values()], bad, how)
    cached = sum(map(len, headers.values())) * channels * size[0] * size[1] <= how.cache_limit_bytes
    held: dict[str, TensorImages] = {}
    streamed: dict[str, FolderImages] = {}
    for part, (files, labels) in parts.items():
        rows = list(headers[part])
        if cached:
            pixels, rows = _decode(bad, part, files, rows, channels, size)
            paths = tuple(file for row in rows if isinstance(file := files[row], Path))
            own = labels[torch.tensor(rows, dtype=torch.int64)]
            held[part] = TensorImages(pixels, own, classes, paths if len(paths) == len(rows) else None)
        else:
            if how.on_error == "skip":
                rows = list(bad.attempt(lambda file, name, _: _check(file, channels, size, name), part, files, rows))
            chosen = torch.tensor(rows, dtype=torch.int64)
            streamed[part] = FolderImages(files, chosen, labels[chosen], classes, channels, size)
    bad.stop(how)
    return held if cached else streamed, tuple(bad)


def present(sets: Sets, part: str) -> TensorImages | FolderImages | None:
    """A split, or None where there is none or nothing of it can be read."""
    images = sets.get(part)
    return images if images is not None and len(images) else None


def _decode(
    bad: _Bad, part: str, files: Sequence[Source], rows: list[int], channels: int, size: tuple[int, int]
) -> tuple[Tensor, list[int]]:
    place = {row: index for index, row in enumerate(rows)}
    pixels = torch.empty(len(rows), channels, *size, dtype=torch.uint8)

    def task(source: Source, name: str, row: int) -> None:
        pixels[place[row]] = torch.from_numpy(read_image(source, channels, size, name=name))

    done = list(bad.attempt(task, part, files, rows))
    return pixels if len(done) == len(rows) else pixels[[place[row] for row in done]], done


def _check(source: Source, channels: int, size: tuple[int, int], name: str) -> None:
    read_image(source, channels, size, name=name)


def _settle(headers: list[Header], bad: _Bad, how: Reading) -> tuple[tuple[int, int], int]:
    if not headers:
        raise DataError(f"none of {len(bad)} files can be read; the first, {bad[0][0]}: {bad[0][1]}")
    size, sizes = how.image_size, {header.size for header in headers}
    if size is None:
        size = next(iter(sizes))
        if len(sizes) > 1 or max(size) > NATIVE_SIDE:
            size = DEFAULT_SIZE
    return size, how.channels or max(header.channels for header in headers)
