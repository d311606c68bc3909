"""Shards: files with the decoded pixels of many images, followed by an index with a checksum for each image."""

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
"""An entry of the index: stamp of the file, offset of the pixels, height and width here and in the original file."""

_END, _MAGIC = struct.Struct("<8sQI"), b"mmshard1"
_OPEN = 64  # the largest number of files that a process keeps open

Decoded = tuple[bytes, tuple[int, int], NDArray[Any]]
"""Stamp, height and width of the file, and pixels ``(H, W, C)``."""


def write_shard(path: Path, images: Iterable[Decoded]) -> None:
    """Write a shard atomically, to a temporary file that is then renamed.

    Raises:
        OSError: the shard cannot be written; no partial file remains.
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
    """The index of a shard; ``ValueError`` if the file is truncated or damaged."""
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
    """Images in shards, read on demand.

    The files are read rather than memory-mapped. Both take the same time, and all processes share the page cache. But a
    mapped file counts as memory of each process, and a truncated file or a failing disk ends the process by SIGBUS.

    Every image is compared with its checksum when a process first reads it. A shard with a damaged image is removed
    with a warning, so that the next start stores its images again; until then the original files are decoded.

    Args:
        shards: the files.
        which: ``(N,)``, the shard of every stored image.
        index: ``(N,)`` of :data:`INDEX`.
        places: for every file of the set its position in the index, or -1.
        channels: number of channels of the images.
        dtype: data type of the pixels.
        whole: whether the images are stored in the form used for evaluation, or larger for random crops.
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
        """The state without open files, which belong to this process."""
        return self.__dict__ | {"_files": OrderedDict()}

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # bound here: modules are cleared first
        for file in self._files.values():
            close(file)

    def read(self, row: int, crop: Crop | None, into: Tensor) -> bool:
        """Read file ``row``, or a crop of it, into a channels-last tensor ``(1, C, H, W)``.

        A crop is rounded to pixels of the stored image, cut out and resized. Returns False if the image is not stored
        in the required form, or is damaged.
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
            else:  # called by F.interpolate(mode="bilinear", antialias=True); its checks and copy would add a tenth
                torch.ops.aten._upsample_bilinear2d_aa.out(part, into.shape[2:], False, None, None, out=into)
        return True

    def _room(self, shape: tuple[int, int, int]) -> NDArray[Any]:
        """An array of that shape in a buffer that is reused."""
        if self._scratch.size < (needed := prod(shape)):
            self._scratch = np.empty(needed, self.dtype)
        return self._scratch[:needed].reshape(shape)

    def _filled(self, shard: int, into: NDArray[Any], start: int) -> bool:
        """Fill the array from a shard; False if the file is missing or too short."""
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
    """Fill memory from a position in the file; return the number of bytes read."""
    if hasattr(os, "preadv"):  # forked workers share the position of a file, so they must not move it
        return os.preadv(file, [into], start)
    os.lseek(file, start, os.SEEK_SET)  # Windows, where processes are not forked
    found = os.read(file, len(into))
    into[: len(found)] = found
    return len(found)


def _pixels(first: float, last: float, stored: int, full: int) -> tuple[int, int]:
    """Convert an interval from pixels of the original file to pixels of the stored image, at least one."""
    start = min(round(first * stored / full), stored - 1)
    return start, max(start + 1, min(stored, round(last * stored / full)))
