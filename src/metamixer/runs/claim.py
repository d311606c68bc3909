"""Claims on run folders: only one run at a time can write to a folder, from before data are read until it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from metamixer.config.yaml_file import RecipeError

LOCK = ".lock"
"""Lock file in the folder during a run. The operating system releases it when the process ends in any way."""

_PATIENCE = 6.0
"""Seconds that a resumed run waits for processes of the previous one that are still ending."""


def new_folder(base: Path, name: str) -> Path:
    """Create ``base/name``, with the first free number as a suffix if it exists. Every caller gets another folder."""
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
    """Claim a run folder, which is created if needed and removed if it remains empty.

    The same process can claim the folder again inside the block.

    Args:
        folder: the run folder.
        resume: the folder may contain a run.

    Raises:
        RecipeError: another process uses the folder, or it is not empty and ``resume`` is False.
        OSError: the folder is not writable.
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
                Path(lock.lock_file).unlink()  # a process that waits for a deleted file retries with a new one
                folder.rmdir()
        lock.release()


def is_taken(folder: Path) -> bool:
    """Whether a folder has any content except its lock and partial files of a killed process."""
    return any(path.name != LOCK and path.suffix != ".tmp" for path in folder.iterdir())


def _locked(folder: Path, patience: float) -> FileLock:
    lock = FileLock(folder / LOCK, is_singleton=True)
    while True:
        if folder.exists() and not folder.is_dir():
            raise RecipeError(f"{folder} is a file; --out names a folder")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
        except FileNotFoundError:  # the previous owner removed the empty folder
            continue
        except Timeout:
            raise RecipeError(
                f"{folder} is in use: another process trains this run; accepted: another --out, or --resume {folder} "
                "after that process has ended"
            ) from None
        return lock
