"""Claims on run folders: one run at a time writes to a folder, from before data are read until it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from metamixer.config.yaml_file import RecipeError

LOCK = ".lock"
"""In the folder while a run is written there. The operating system lets go of it when the process ends, however."""

_PATIENCE = 6.0
"""Seconds that a resumed run waits for the processes of the one before, which may still be ending."""


def new_folder(base: Path, name: str) -> Path:
    """Create ``base/name``, with the first free number as a suffix if it exists; no two callers get the same."""
    base.mkdir(parents=True, exist_ok=True)
    folder, number = base / name, 1
    while True:
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            folder = base / f"{name}-{number}"
        else:
            return folder


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Claim the folder of a run; it is created if needed, and removed if it stays empty.

    The same process may claim it once more inside.

    Args:
        folder: of the run.
        resume: it may hold a run already.

    Raises:
        RecipeError: another process writes there, or something lies there and it is not ``resume``.
        OSError: nothing can be written there.
    """
    lock = _locked(folder, _PATIENCE if resume else 0.0)
    try:
        if not resume and is_taken(folder):
            what = "a run" if (folder / "recipe.yaml").is_file() else "not empty"
            raise RecipeError(
                f"{folder} is {what}: --resume {folder} resumes a run, --out FOLDER writes to another place"
            )
        yield
    finally:
        if lock.lock_counter == 1:
            with contextlib.suppress(OSError):
                Path(lock.lock_file).unlink()  # who waits for a file that is gone tries again with a new one
                folder.rmdir()
        lock.release()


def is_taken(folder: Path) -> bool:
    """Whether a folder has content other than its lock and partly written files of a killed process."""
    return any(path.name != LOCK and path.suffix != ".tmp" for path in folder.iterdir())


def _locked(folder: Path, patience: float) -> FileLock:
    lock = FileLock(folder / LOCK, is_singleton=True)
    while True:
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"{folder} is a file; --out names a folder")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
        except FileNotFoundError:  # its last owner took the empty folder away
            continue
        except Timeout:
            raise RecipeError(
                f"{folder} is in use: another process trains this run; accepted is another --out, or --resume {folder} "
                "once that process has ended"
            ) from None
        return lock
