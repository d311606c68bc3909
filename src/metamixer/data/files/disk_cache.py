"""Decoded images on disk, written once by the processes that need them and read by all that come later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from metamixer.core.progress import watched
from metamixer.core.text import clean
from metamixer.data.errors import DataError, ImageError
from metamixer.data.files.image_file import WHITE, read_header, read_image
from metamixer.data.files.picture import Source
from metamixer.data.files.shards import INDEX, StoredImages, read_index, write_shard
from metamixer.data.files.streaming import FolderImages
from metamixer.data.image_set import evenly_spaced

Attempt = Callable[..., dict[int, Any]]
"""As ``load_files._Bad.attempt``: a task for many files in threads, which notes those that cannot be read."""

_SHARD = 2**26  # bytes, about
_INSTEAD = "accepted is a folder on a disk with room, or data.cache=off, which decodes files in each epoch"


def cache_folder(cache: str | Path) -> Path | None:
    """Where decoded images go: nowhere (``off``), into the system's folder for caches (``auto``), or a folder.

    Raises:
        DataError: a file lies there.
    """
    if cache == "off":
        return None
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME")
    folder = Path(base or Path.home() / ".cache") / "metamixer" / "images" if cache == "auto" else Path(cache)
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"data.cache={clean(folder)} is a file; a folder, auto or off is accepted")
    return folder


@dataclass(frozen=True)
class DiskCache:
    """The images of one preparation in the cache.

    Args:
        folder: of the cache.
        images: a set whose files are decoded.
        side: the shorter side of stored images, where random crops are cut out of them; None: they are stored as they
            are evaluated, and what is read is the same to the last bit.
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
        """Where images of this preparation lie, of whatever set."""
        images = self.images
        how = f"{'x'.join(map(str, images.size))}-{images.fit}" if self.side is None else f"short{self.side}"
        white = "" if images.white == WHITE else f"-white{images.white}"
        return self.folder / f"{how}-{images.channels}x{images.bits}bit{white}.v1"

    def open(self) -> FolderImages:
        """The set with what is stored; the files of other images are decoded."""
        return self._with(_Stored.read(self.home), *self._known())

    def complete(self, attempt: Attempt) -> FolderImages:
        """The set, after all of its images that can be read were stored.

        Several processes, of one run or of several, share the work: each shard is written by whoever locks it first,
        and they wait for each other at the end. What a killed process had finished stays.

        Raises:
            OSError: nothing can be written there, or there is not enough room.
        """
        rows, stamps = self._known()
        blocks = np.arange(len(rows)) // max(1, _SHARD // self._bytes_each(rows[:1]))
        bad = set(rows[stamps == b""].tolist())  # gone; decoding says so
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
        """The files that the set has, and what each is known by."""
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
        """Make the folder, clear up after killed processes, and look whether there is room."""
        with _writing(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
            for partial in self.home.glob("*.tmp"):
                with _locked(partial, wait=False) as mine:
                    if mine:
                        partial.unlink(missing_ok=True)
            free = shutil.disk_usage(self.home).free
        if (needed := len(rows) * self._bytes_each(rows)) > free:
            raise OSError(
                f"data.cache={clean(self.folder)}: decoded images take {needed / 1e9:.3g} GB, {free / 1e9:.3g} GB are "
                f"free; {_INSTEAD}"
            )

    def _bytes_each(self, rows: NDArray[np.int64]) -> int:
        """Of a stored image, on average; where sizes differ by some headers."""
        sizes = [self.images.size]
        if self.side is not None and len(rows):
            sizes = [size for row in rows[evenly_spaced(len(rows), 256).numpy()] if (size := self._size(row)[1])]
        area = sum(high * wide for high, wide in sizes) / max(1, len(sizes))
        return max(1, round(area * self.images.channels * (4 if self.images.bits == 16 else 1)))

    def _size(self, row: int, name: str = "") -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of a file and of what is stored of it."""
        images, side = self.images, self.side
        if side is None:
            return images.size, images.size
        with suppress(ImageError):
            full = read_header(images.files[row], name).size
            scale = min(1.0, side / min(full))
            return full, (max(1, round(full[0] * scale)), max(1, round(full[1] * scale)))
        return (side, side), (side, side)  # decoding says what is wrong with the file

    def _write(
        self, rows: NDArray[np.int64], stamps: NDArray[np.bytes_], attempt: Attempt, bad: set[int], *, wait: bool
    ) -> bool:
        """Store some images in one shard, unless another process has; False: it is at it, and not waited for."""
        images = self.images
        fit: Literal["crop", "letterbox", "squash"] = images.fit if self.side is None else "squash"

        def decode(source: Source, name: str, row: int) -> tuple[tuple[int, int], NDArray[Any]]:
            full, size = self._size(row, name)
            pixels = read_image(source, images.channels, size, name=name, fit=fit, white=images.white, bits=images.bits)
            return full, np.ascontiguousarray(pixels.transpose(1, 2, 0))

        path = self.home / f"{blake2b(stamps.tobytes(), digest_size=16).hexdigest()}.shard"
        with _writing(path), _locked(path, wait=wait) as mine:
            if mine and not path.exists():
                done = attempt(decode, images.part, images.files, rows.tolist(), None)
                bad.update(row for row in rows.tolist() if row not in done)
                if done:
                    known = dict(zip(rows.tolist(), stamps, strict=True))
                    write_shard(path, ((known[row], full, pixels) for row, (full, pixels) in done.items()))
        return mine


@dataclass(frozen=True)
class _Stored:
    """The shards of a folder and their indices as one, sorted by stamps."""

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
                    path.unlink()  # it is written again
        index = np.concatenate(indices)
        which = np.repeat(np.arange(len(shards)), [len(each) for each in indices[1:]])
        order = np.argsort(index["stamp"], kind="stable")
        return cls(tuple(shards), which[order], index[order])

    def places(self, stamps: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Where images are in the index, -1 if they are not."""
        if not len(self.index):
            return np.full(len(stamps), -1, np.int64)
        found = np.searchsorted(self.index["stamp"], stamps).clip(max=len(self.index) - 1)
        return np.where((self.index["stamp"][found] == stamps) & (stamps != b""), found, -1)


def _stamp(files: Sequence[Source], row: int) -> bytes:
    """What a file is known by: its place, size and time of change; another one after any of them changed."""
    known: Callable[[int], str | None] = getattr(files, "known_by", lambda row: None)
    if (text := known(row)) is None:
        source = files[row]
        assert isinstance(source, Path)  # noqa: S101
        try:
            found = source.stat()
        except OSError:
            return b""  # decoding says what is wrong with it
        text = f"{os.path.abspath(source)}\0{found.st_size}\0{found.st_mtime_ns}"
    return blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a shard, or give False. The system lets go of it when the process ends, however."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            path.with_suffix(".lock").unlink()  # who waits for a file that is gone tries again with a new one
        lock.release()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"data.cache: {clean(path)} cannot be written: {error.strerror or error}; {_INSTEAD}") from error
