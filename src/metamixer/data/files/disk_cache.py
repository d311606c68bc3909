"""Cache of decoded images on disk: written once by the first processes that need them, then only read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from metamixer.core.progress import watched
from metamixer.core.text import clean
from metamixer.data.errors import DataError, ImageError
from metamixer.data.files.cache_folder import INSTEAD, locked, writing
from metamixer.data.files.folder_images import FolderImages
from metamixer.data.files.image_file import WHITE, read_header, read_image
from metamixer.data.files.picture import Source
from metamixer.data.files.shards import INDEX, StoredImages, read_index, write_shard
from metamixer.data.image_set import evenly_spaced

Attempt = Callable[..., dict[int, Any]]
"""Like ``load_files._Bad.attempt``: runs a task for many files in threads and records those that cannot be read."""

_SHARD = 2**26  # approximate size in bytes


@dataclass(frozen=True)
class DiskCache:
    """The images of one preparation in the cache.

    Args:
        folder: folder of the cache.
        images: the set whose files are decoded.
        side: length of the shorter side of stored images, for random crops; None: images are stored in the form used
            for evaluation, and read back exactly.
    """

    folder: Path
    images: FolderImages
    side: int | None = None

    def __post_init__(self) -> None:
        if self.side is not None and self.side < max(self.images.size):
            raise DataError(
                f"data.cache_size={self.side} with images of {'x'.join(map(str, self.images.size))}; expected at least "
                f"{max(self.images.size)}, the longer side"
            )

    @property
    def home(self) -> Path:
        """The folder of all images with this preparation, shared by all sets."""
        images = self.images
        how = f"{'x'.join(map(str, images.size))}-{images.fit}" if self.side is None else f"short{self.side}"
        white = "" if images.white == WHITE else f"-white{images.white}"
        return self.folder / f"{how}-{images.channels}x{images.bits}bit{white}.v1"

    def open(self) -> FolderImages:
        """The set with the images stored so far; the other files are decoded."""
        return self._with(_Stored.read(self.home), *self._known())

    def complete(self, attempt: Attempt) -> FolderImages:
        """Store all images of the set that can be read, and return the set.

        Several processes of one or more runs share the work: each shard is written by the process that locks it first,
        and the processes wait for each other at the end. Shards finished by a process that was killed are kept.

        Raises:
            OSError: the folder is not writable, or there is not enough space.
        """
        rows, stamps = self._known()
        blocks = np.arange(len(rows)) // max(1, _SHARD // self._bytes_each(rows[:1]))
        bad = set(rows[stamps == b""].tolist())  # missing files, which decoding reports
        tidied = False
        while True:
            stored = _Stored.read(self.home)
            missing = (stored.places(stamps) < 0) & ~np.isin(rows, list(bad))
            if not missing.any():
                return self._with(stored, rows, stamps)
            if not tidied:
                self._prepare(rows[missing])
                tidied = True
            parts = [np.flatnonzero(missing & (blocks == block)) for block in np.unique(blocks[missing])]
            later = []
            for part in watched(parts, "storing decoded images"):
                if not self._write(rows[part], stamps[part], attempt, bad, wait=False):
                    later.append(part)
            for part in later:
                self._write(rows[part], stamps[part], attempt, bad, wait=True)

    def _known(self) -> tuple[NDArray[np.int64], NDArray[np.bytes_]]:
        """The files of the set, and the stamp that identifies each."""
        rows = np.unique(self.images.rows.numpy())
        return rows, np.array([_stamp(self.images.files, row) for row in rows.tolist()], "S16")

    def _with(self, stored: _Stored, rows: NDArray[np.int64], stamps: NDArray[np.bytes_]) -> FolderImages:
        images = self.images
        places = np.full(len(images.files), -1, np.int64)
        places[rows] = stored.places(stamps)
        dtype = np.float32 if images.bits == 16 else np.uint8
        found = StoredImages(
            stored.shards, stored.which, stored.index, places, images.channels, dtype, self.side is None
        )
        return replace(images, stored=found)

    def _prepare(self, rows: NDArray[np.int64]) -> None:
        """Create the folder, remove leftovers of killed processes, and check the free space."""
        with writing(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            for partial in self.home.glob("*.tmp"):
                with locked(partial, wait=False) as mine:
                    if mine:
                        partial.unlink(missing_ok=True)
            free = shutil.disk_usage(self.home).free
        if (needed := len(rows) * self._bytes_each(rows)) > free:
            raise OSError(
                f"data.cache={clean(self.folder)}: decoded images take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are "
                f"free; {INSTEAD}"
            )

    def _bytes_each(self, rows: NDArray[np.int64]) -> int:
        """The average size of a stored image; estimated from some headers if the sizes differ."""
        sizes = [self.images.size]
        if self.side is not None and len(rows):
            sizes = [size for row in rows[evenly_spaced(len(rows), 256).numpy()] if (size := self._size(row)[1])]
        area = sum(high * wide for high, wide in sizes) / max(1, len(sizes))
        return max(1, round(area * self.images.channels * (4 if self.images.bits == 16 else 1)))

    def _size(self, row: int, name: str = "") -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of an image in its file, and as it is stored."""
        images, side = self.images, self.side
        if side is None:
            return images.size, images.size
        with suppress(ImageError):
            full = read_header(images.files[row], name).size
            scale = min(1.0, side / min(full))
            return full, (max(1, round(full[0] * scale)), max(1, round(full[1] * scale)))
        return (side, side), (side, side)  # decoding reports what is wrong with the file

    def _write(
        self, rows: NDArray[np.int64], stamps: NDArray[np.bytes_], attempt: Attempt, bad: set[int], *, wait: bool
    ) -> bool:
        """Write images to a shard, unless another process has done so; False: it is doing so, and ``wait`` is False."""
        images = self.images
        fit: Literal["crop", "letterbox", "squash"] = images.fit if self.side is None else "squash"

        def decode(source: Source, name: str, row: int) -> tuple[tuple[int, int], NDArray[Any]]:
            full, size = self._size(row, name)
            pixels = read_image(source, images.channels, size, name=name, fit=fit, white=images.white, bits=images.bits)
            return full, np.ascontiguousarray(pixels.transpose(1, 2, 0))

        path = self.home / f"{blake2b(stamps.tobytes(), digest_size=16).hexdigest()}.shard"
        with writing(path), locked(path, wait=wait) as mine:
            if mine and not path.exists():
                done = attempt(decode, images.part, images.files, rows.tolist(), None)
                bad.update(row for row in rows.tolist() if row not in done)
                if done:
                    known = dict(zip(rows.tolist(), stamps, strict=True))
                    write_shard(path, ((known[row], full, pixels) for row, (full, pixels) in done.items()))
        return mine


@dataclass(frozen=True)
class _Stored:
    """The shards of a folder, and their joint index sorted by stamps."""

    shards: tuple[Path, ...]
    which: NDArray[Any]
    index: NDArray[Any]

    @classmethod
    def read(cls, home: Path) -> _Stored:
        shards, indices = [], [np.zeros(0, INDEX)]
        for path in sorted(home.glob("*.shard")):
            try:
                indices.append(read_index(path))
                shards.append(path)
            except FileNotFoundError:
                continue  # another process found it damaged
            except ValueError:
                with suppress(OSError):
                    path.unlink()  # will be written again
        index = np.concatenate(indices)
        which = np.repeat(np.arange(len(shards)), [len(each) for each in indices[1:]])
        order = np.argsort(index["stamp"], kind="stable")
        return cls(tuple(shards), which[order], index[order])

    def places(self, stamps: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """The positions of images in the index; -1 if they are not in it."""
        if not len(self.index):
            return np.full(len(stamps), -1, np.int64)
        found = np.searchsorted(self.index["stamp"], stamps).clip(max=len(self.index) - 1)
        return np.where((self.index["stamp"][found] == stamps) & (stamps != b""), found, -1)


def _stamp(files: Sequence[Source], row: int) -> bytes:
    """The stamp that identifies a file: a hash of its path, size and modification time."""
    known: Callable[[int], str | None] = getattr(files, "known_by", lambda row: None)
    if (text := known(row)) is None:
        source = files[row]
        assert isinstance(source, Path)  # noqa: S101
        try:
            found = source.stat()
        except OSError:
            return b""  # decoding reports what is wrong with it
        text = f"{os.path.abspath(source)}\0{found.st_size}\0{found.st_mtime_ns}"
    return blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()
