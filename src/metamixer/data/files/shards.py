"""Shards: decoded images of many files in one, behind them an index with a checksum for each image."""

from __future__ import annotations

import os
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metamixer.data.files.image_file import Crop

INDEX = np.dtype(
    [("stamp", "S16"), ("start", "<u8"), ("size", "<u4", (2,)), ("full", "<u4", (2,)), ("checksum", "<u4")]
)
"""Of each image: what its file is known by, where its pixels start, its height and width here and in its file."""

_END, _MAGIC = struct.Struct("<8sQI"), b"mmshard1"
_OPEN = 64  # files that a process holds open

Decoded = tuple[bytes, tuple[int, int], NDArray[Any]]
"""Stamp, height and width of the file, and pixels ``(H, W, C)``."""


def write_shard(path: Path, images: Iterable[Decoded]) -> None:
    """Write a shard beside its place and move it there, so that nobody reads half of it.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    partial = path.with_suffix(".tmp")
    try:
        with partial.open("wb") as file:
            index = []
            for stamp, full, pixels in images:
                index.append((stamp, file.tell(), pixels.shape[:2], full, crc32(pixels.data)))
                file.write(pixels.data)
            table = np.array(index, INDEX).tobytes()
            file.write(table + _END.pack(_MAGIC, len(index), crc32(table)))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read_index(path: Path) -> NDArray[Any]:
    """The index of a shard; ``ValueError`` if it is cut off or damaged."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END) - _END.size
        if end >= 0:
            file.seek(end)
            magic, count, checksum = _END.unpack(file.read())
            start = end - count * INDEX.itemsize
            if magic == _MAGIC and start >= 0:
                file.seek(start)
                table = file.read(end - start)
                if crc32(table) == checksum:
                    return np.frombuffer(table, INDEX)
    raise ValueError(f"{path}: damaged")


class StoredImages:
    """Images in shards, read as they are asked for.

    Read and not mapped into memory: both share the system's copy among all processes and take the same time, but a
    mapped file counts as memory of each process, and ends it by SIGBUS where the file is cut off or the disk fails.

    Every image is compared with its checksum when a process reads it for the first time. A shard with a damaged image
    is removed, with a warning, so that the next start stores its images again; until then the file is decoded.

    Args:
        shards: the files.
        which: ``(N,)``, the shard of every image that is stored.
        index: ``(N,)`` of :data:`INDEX`.
        places: for every file of the set its place in the index, or -1.
        channels: of the images.
        dtype: of the values.
        whole: whether the images are as they are evaluated, or larger, so that random crops can be cut out of them.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        which: NDArray[Any],
        index: NDArray[Any],
        places: NDArray[np.int64],
        channels: int,
        dtype: Any,
        whole: bool,
    ) -> None:
        self.shards, self.which, self.index, self.places = shards, which, index, places
        self.channels, self.dtype, self.whole = channels, np.dtype(dtype), whole
        self._checked = np.zeros(len(index), bool)
        self._scratch = np.empty(0, dtype)
        self._files: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files, which are of this process."""
        return self.__dict__ | {"_files": OrderedDict()}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # taken here, because modules end before
        for file in self._files.values():
            close(file)

    def read(self, row: int, crop: Crop | None, into: Tensor) -> bool:
        """File ``row``, whole or a part of it, into ``(1, C, H, W)`` that is channels last.

        A part is rounded to whole pixels of the stored image, cut out and resized. False: it is not stored so, or is
        damaged.
        """
        place = int(self.places[row])
        if place < 0 or (crop is None) != self.whole:
            return False
        _, start, (high, wide), (full_high, full_wide), checksum = self.index[place].tolist()
        top, bottom, left, right = 0, high, 0, wide
        if crop is not None:
            x0, y0, x1, y1 = crop(full_wide, full_high)
            left, right = _pixels(x0, x1, wide, full_wide)
            top, bottom = _pixels(y0, y1, high, full_high)
        fresh = not self._checked[place]
        first, last = (0, high) if fresh else (top, bottom)
        pixels = into[0].permute(1, 2, 0).numpy() if crop is None else self._room((last - first, wide, self.channels))
        start += first * wide * self.channels * self.dtype.itemsize
        if not self._filled(int(self.which[place]), pixels, start) or (fresh and crc32(pixels.data) != checksum):
            self._drop(row, self.shards[int(self.which[place])])
            return False
        self._checked[place] = True
        if crop is not None:
            part = torch.from_numpy(pixels[top - first : bottom - first, left:right])[None].permute(0, 3, 1, 2)
            if part.shape == into.shape:
                into.copy_(part)
            else:  # what F.interpolate(mode="bilinear", antialias=True) calls, without its checks and a copy: a tenth
                torch.ops.aten._upsample_bilinear2d_aa.out(part, into.shape[2:], False, None, None, out=into)
        return True

    def _room(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        """An array of that shape, the same memory again and again."""
        if self._scratch.size < (needed := prod(shape)):
            self._scratch = np.empty(needed, self.dtype)
        return self._scratch[:needed].reshape(shape)

    def _filled(self, shard: int, into: NDArray[Any], start: int) -> bool:
        """Fill the array from a shard; False if it is gone or too short."""
        try:
            if shard not in self._files:
                if len(self._files) == _OPEN:
                    os.close(self._files.popitem(last=False)[1])
                self._files[shard] = os.open(self.shards[shard], os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._files.move_to_end(shard)
            return _read_at(self._files[shard], into.data.cast("B"), start) == into.nbytes
        except OSError:
            return False

    def _drop(self, row: int, shard: Path) -> None:
        self.places[row] = -1
        warnings.warn(
            f"{shard} is damaged and was removed; its images are stored again at the next start, until then files are "
            "decoded",
            stacklevel=2,
        )
        with suppress(OSError):
            shard.unlink()


def _read_at(file: int, into: memoryview, start: int) -> int:
    """Fill memory from a place of the file; how many bytes there were."""
    if hasattr(os, "preadv"):  # forked workers share the place of a file, so that they must not move it
        return os.preadv(file, [into], start)
    os.lseek(file, start, os.SEEK_SET)  # Windows, where processes are not forked
    found = os.read(file, len(into))
    into[: len(found)] = found
    return len(found)


def _pixels(first: float, last: float, stored: int, full: int) -> tuple[int, int]:
    """An interval of the file's pixels in those of the stored image, at least one."""
    start = min(round(first * stored / full), stored - 1)
    return start, max(start + 1, min(stored, round(last * stored / full)))
