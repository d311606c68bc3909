"""Turn labelled files into image sets: in memory if they fit, otherwise decoded from disk for each batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeVar, Unpack

import torch
from torch import Tensor

from metamixer.core.machine import cores
from metamixer.core.progress import watched
from metamixer.core.text import clean, counted
from metamixer.data.errors import DataError, ImageError
from metamixer.data.files.cache_folder import cache_folder
from metamixer.data.files.disk_cache import DiskCache
from metamixer.data.files.folder_images import FolderImages, called
from metamixer.data.files.image_file import WHITE, Fit, Header, largest_value, read_header
from metamixer.data.files.picture import MAX_PIXELS, Source
from metamixer.data.files.sharded import Shards
from metamixer.data.image_set import ImageSet, Numbers, TensorImages, evenly_spaced
from metamixer.data.splits import SPLITS, Data, HoldOut, Split, assemble

T = TypeVar("T")
Skipped = tuple[tuple[str, str], ...]

NATIVE_SIDE = 96
DEFAULT_SIZE = (224, 224)
CHUNK = 32
_LOOKED_AT = 32  # headers of images in shards


@dataclass(frozen=True)
class Reading:
    """How to read files.

    Args:
        image_size: height and width; None: the size of the files if all have one and no side is above 96
            pixels, else 224 x 224.
        channels: number of channels; None: as the file with the most, 1 if all are grey.
        on_error: ``stop`` at unreadable files, or ``skip`` and list them.
        cache_limit_bytes: largest size of all pixels that are held in memory.
        fit, white, bits: see :func:`~metamixer.data.read_image`.
        splits: the splits to hold in memory; images of the others are decoded on access.
        scale: mean and standard deviation of the training images, if known; otherwise they are computed.
        crops: whether training images stay on disk, because random crops need all their pixels.
        skipped: names, as in :attr:`Found.skipped`, of damaged files to leave out without reading them.
        cache: where to store decoded images that do not stay in memory: a folder, ``auto`` (the system's folder for
            caches) or ``off``.
        cache_size: shorter side of images that are stored for random crops; None: 8/7 of the longer side of
            ``image_size``.
        cache_writes: whether to store images that are not in the cache yet.
        buffer: number of images of shards that are shuffled together.
    """

    image_size: tuple[int, int] | None = None
    channels: int | None = None
    on_error: Literal["stop", "skip"] = "stop"
    cache_limit_bytes: int = 2 * 1024**3
    fit: Fit = "crop"
    white: int = WHITE
    bits: int = 8
    splits: Collection[Split] = SPLITS
    scale: tuple[Numbers, Numbers] | None = None
    crops: bool = False
    skipped: Collection[str] = ()
    cache: str | Path = "off"
    cache_size: int | None = None
    cache_writes: bool = True
    buffer: int = 4096

    def __post_init__(self) -> None:
        cache_folder(self.cache)
        if self.on_error not in ("stop", "skip"):
            raise DataError(f"on_error={self.on_error!r} is not known; expected 'stop' or 'skip'")
        if self.channels is not None and self.channels < 1:
            raise DataError(f"channels={self.channels!r}; expected 1 (grey), 3 (colour), more, or None")
        if self.bits not in (8, 16):
            raise DataError(f"bits={self.bits!r}; expected 8, or 16 to keep what 16-bit files hold")
        if self.fit not in ("crop", "letterbox", "squash"):
            raise DataError(f"fit={self.fit!r}; expected 'crop', 'letterbox' or 'squash'")
        if not 1 <= self.white <= WHITE:
            raise DataError(f"white={self.white}; expected a 16-bit value from 1 to {WHITE}")
        if self.image_size is not None and self.image_size[0] * self.image_size[1] > MAX_PIXELS:
            raise DataError(
                f"image_size={'x'.join(map(str, self.image_size))}: {MAX_PIXELS:,} pixels are the most that an image "
                "may have"
            )


class _Bad(list[tuple[str, str]]):
    """Name and cause of every file that could not be read."""

    def stop(self, how: Reading) -> None:
        if self and how.on_error == "stop":
            first = "\n".join(f"  {name}: {cause}" for name, cause in self[:5])
            more = f"\n  and {len(self) - 5} more" if len(self) > 5 else ""
            raise DataError(
                f"{counted(len(self), 'file')} cannot be read; repair or remove them, or pass on_error='skip':\n"
                f"{first}{more}"
            )

    def attempt(
        self,
        task: Callable[[Source, str, int], T],
        part: str,
        files: Sequence[Source],
        rows: Sequence[int],
        what: str | None = "decoding images",
    ) -> dict[int, T]:
        """The result of the task for each row that succeeds; failures are added to this list."""

        def some(rows: Sequence[int]) -> list[tuple[int, T | ImageError]]:
            results: list[tuple[int, T | ImageError]] = []
            for row in rows:
                try:
                    source = files[row]
                    results.append((row, task(source, _name(part, files, row, source), row)))
                except ImageError as error:
                    results.append((row, error))
            return results

        done: dict[int, T] = {}
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        with ThreadPoolExecutor(min(16, cores())) as pool:
            results = chain.from_iterable(pool.map(some, chunks))
            for row, result in results if what is None else watched(results, what, len(rows)):
                if isinstance(result, ImageError):
                    name = _name(part, files, row)
                    self.append((name, str(result).removeprefix(f"{name}: ")))
                else:
                    done[row] = result
        return done


def _name(part: str, files: Sequence[Source], row: int, source: Source | None = None) -> str:
    if not isinstance(files, Shards) and isinstance(path := files[row] if source is None else source, Path):
        return clean(path)
    return called(files, row, part)


@dataclass(frozen=True)
class Found:
    """The result of :func:`read`.

    Args:
        parts: the images of each part of the files.
        cached: whether all pixels fit in memory.
        skipped: name and cause of each skipped file.
        notes: sentences about what is unusual but not an error.
    """

    parts: Mapping[str, TensorImages | FolderImages]
    cached: bool
    skipped: Skipped
    notes: tuple[str, ...]

    def get(self, part: str) -> TensorImages | FolderImages | None:
        """A part, or None if it does not exist or none of its files can be read."""
        images = self.parts.get(part)
        return images if images is not None and len(images) else None

    def assemble(self, name: str, how: Reading, notes: tuple[str, ...], **hold: Unpack[HoldOut]) -> Data:
        """The splits ``train``, ``val`` and ``test`` as the data ``name``."""
        if (train := self.get("train")) is None:
            raise DataError(f"{name}: no training image has a label and can be read")
        notes += self.notes
        if self.skipped:
            notes += (f"{counted(len(self.skipped), 'image')} skipped that cannot be read",)
        return assemble(
            name,
            train,
            self.get("val"),
            self.get("test"),
            **hold,
            prepare=self.prepare(how),
            scale=how.scale,
            notes=notes,
            skipped=self.skipped,
        )

    def prepare(self, how: Reading) -> Callable[[Split, ImageSet], ImageSet]:
        """Return a function that decodes the splits to hold in memory, and caches the requested ones on disk."""
        held = {*how.splits, *(() if how.scale else ("train",))} if self.cached else set()
        held -= {"train"} if how.crops else set()

        def prepared(part: Split, images: ImageSet) -> ImageSet:
            if part in held:
                return decoded(images)
            if isinstance(images, FolderImages) and part in how.splits:
                return _stored(images, how, crops=how.crops and part == "train")
            return images

        return prepared


def read(
    parts: Mapping[str, tuple[Sequence[Source], Tensor]], classes: tuple[str, ...], how: Reading, known: Skipped = ()
) -> Found:
    """Examine the files of all parts.

    First, every header is read. Headers determine size, channels and whether the pixels fit in memory, and files that
    are not images are refused. For images in shards only a few headers are read, and pixels do not stay in memory.
    Images are decoded here only for ``on_error="skip"``, to find damaged files, because the images of a set must not
    change later. Otherwise :func:`decoded` does it for the splits that are needed.

    Args:
        parts: the files and ``(N,)`` int64 labels of every part.
        classes: the name of every class.
        how: size, channels, and what to do with damaged files.
        known: name and cause of files that are known to be unreadable.

    Raises:
        DataError: names the first files that cannot be read, with their causes, and says how many there are.
    """
    bad = _Bad(one for one in known if one[0] not in how.skipped)
    wanted = {part: _rows(part, files, how) for part, (files, _) in parts.items()}
    streamed = any(isinstance(files, Shards) for files, _ in parts.values())
    headers: dict[str, dict[int, Header]] = {}
    for part, (files, _) in parts.items():
        rows = wanted[part]
        chosen = [rows[at] for at in evenly_spaced(len(rows), _LOOKED_AT).tolist()] if streamed else rows
        headers[part] = bad.attempt(
            lambda source, name, _: read_header(source, name), part, files, chosen, "reading headers"
        )
    bad.stop(how)
    size, channels = _settle([header for found in headers.values() for header in found.values()], bad, how)
    needed = sum(map(len, headers.values())) * channels * size[0] * size[1] * (4 if how.bits == 16 else 1)
    cached = needed <= how.cache_limit_bytes and not streamed
    no_image = {name for name, _ in bad}
    found: dict[str, TensorImages | FolderImages] = {}
    for part, (files, labels) in parts.items():
        kept = list(headers[part])
        if streamed:
            kept = [row for row in wanted[part] if not no_image or _name(part, files, row) not in no_image]
        place = torch.tensor(kept, dtype=torch.int64)
        images = FolderImages(
            files, place, labels[place], classes, channels, size, fit=how.fit, white=how.white, bits=how.bits, part=part
        )
        found[part] = images
        if how.on_error == "skip":
            found[part] = _decode(images, bad) if cached and not how.crops else _readable(images, how, bad)
    sixteen = [
        (part, row, parts[part][0][row]) for part in headers for row, one in headers[part].items() if one.sixteen
    ]
    deep = [(_name(part, parts[part][0], row, source), source) for part, row, source in sixteen]
    notes = sixteen_bits(deep, how.white)
    if streamed and None in (how.image_size, how.channels):
        looked = counted(sum(map(len, headers.values())), "image")
        notes = (f"size and channels are those of {looked} of {sum(map(len, wanted.values())):,}", *notes)
    return Found(found, cached, tuple(bad), notes)


def _readable(images: FolderImages, how: Reading, bad: _Bad) -> FolderImages:
    def whole(source: Source, name: str, row: int) -> None:
        images.image(row)

    stored, rows = _in_cache(images, how), images.rows.tolist()
    look = [row for row in rows if row not in stored]
    good = bad.attempt(whole, images.part, images.files, look).keys() | stored
    return images.subset(torch.tensor([row in good for row in rows]).nonzero().flatten())


def _rows(part: str, files: Sequence[Source], how: Reading) -> Sequence[int]:
    rows = range(len(files))
    return [row for row in rows if _name(part, files, row) not in how.skipped] if how.skipped else rows


def _cache(images: FolderImages, how: Reading, *, crops: bool) -> DiskCache | None:
    if (folder := cache_folder(how.cache)) is None:
        return None
    side = (how.cache_size or round(max(images.size) * 8 / 7)) if crops else None
    return DiskCache(folder, images, side)


def _stored(images: FolderImages, how: Reading, *, crops: bool) -> FolderImages:
    if (cache := _cache(images, how, crops=crops)) is None:
        return images
    if not how.cache_writes:
        return cache.open()
    bad = _Bad()
    images = cache.complete(bad.attempt)
    bad.stop(how)
    return images


def _in_cache(images: FolderImages, how: Reading) -> set[int]:
    """The rows of files in the cache, which are therefore readable."""
    caches = [_cache(images, how, crops=crops) for crops in {False, how.crops}]
    opened = [cache.open().stored for cache in caches if cache is not None]
    return {row for stored in opened if stored is not None for row in (stored.places >= 0).nonzero()[0].tolist()}


def decoded(images: ImageSet) -> TensorImages:
    """The images in memory.

    Raises:
        DataError: names the first files that cannot be read, with their causes, and says how many there are.
    """
    if isinstance(images, TensorImages):
        return images
    assert isinstance(images, FolderImages)  # noqa: S101
    bad = _Bad()
    found = _decode(images, bad)
    bad.stop(Reading())
    return found


def _decode(images: FolderImages, bad: _Bad) -> TensorImages:
    rows = images.rows.tolist()
    place = {row: index for index, row in enumerate(rows)}
    pixels = torch.empty(len(rows), images.channels, *images.size, dtype=images.dtype)

    def task(source: Source, name: str, row: int) -> None:
        pixels[place[row]] = images.image(row)

    done = [place[row] for row in bad.attempt(task, images.part, images.files, rows)]
    if len(done) < len(rows):
        pixels, images = pixels[done], images.subset(torch.tensor(done, dtype=torch.int64))
    paths = tuple(file for row in images.rows.tolist() if isinstance(file := images.files[row], Path))
    return TensorImages(pixels, images.labels, images.classes, paths if len(paths) == len(images) else None)


def sixteen_bits(deep: Sequence[tuple[str, Source]], white: int = WHITE) -> tuple[str, ...]:
    """A note if 16-bit files use fewer bits, such as those of 12-bit cameras: 4,096 of 65,536 values look almost black.

    Args:
        deep: name and source of every 16-bit file.
        white: the value that is white.
    """
    if not deep:
        return ()
    largest = 0
    chosen = [deep[index] for index in evenly_spaced(len(deep), 64).tolist()]
    for name, source in watched(chosen, "largest values of 16-bit images"):
        try:
            largest = max(largest, largest_value(source, name))
        except ImageError:  # decoding reports it
            continue
    bits = max(8, largest.bit_length())
    full = 2**bits - 1
    note = f"16-bit images: the largest value in {len(chosen)} of {len(deep)} files is {largest:,}"
    if largest > white:
        return (f"{note}, values above data.white={white} are white",)
    return (f"{note}, so that they are dark; data.white={full} makes {full:,} white",) if 4 * full <= white else ()


def _settle(headers: list[Header], bad: _Bad, how: Reading) -> tuple[tuple[int, int], int]:
    if not headers:
        raise DataError(f"none of {len(bad)} files can be read; the first, {bad[0][0]}: {bad[0][1]}")
    size, sizes = how.image_size, {header.size for header in headers}
    if size is None:
        size = next(iter(sizes))
        if len(sizes) > 1 or max(size) > NATIVE_SIDE:
            size = DEFAULT_SIZE
    return size, how.channels or max(header.channels for header in headers)
