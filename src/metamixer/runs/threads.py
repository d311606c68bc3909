"""The number of threads of training on a CPU."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import read_mapping
from metamixer.core.machine import cores, load
from metamixer.core.text import counted


def set_threads(asked: int | None, run: Path | None = None) -> list[str]:
    """Set the number of threads of torch: the given one, that of a resumed run, or the cores of this process.

    torch counts the cores of the machine; a container or ``taskset`` may provide fewer. ``OMP_NUM_THREADS`` is
    respected.

    Args:
        asked: the number of threads, or None.
        run: the folder of a run that is resumed; with another number of threads its last bits differ.

    Returns:
        Warnings.

    Raises:
        RecipeError: the number is below 1.
    """
    if asked is not None and asked < 1:
        raise RecipeError(f"--threads {asked}: accepted are numbers from 1")
    usual, before = torch.get_num_threads(), _before(run)
    chosen = asked or before or (usual if "OMP_NUM_THREADS" in os.environ else min(usual, cores()))
    if chosen != usual:
        torch.set_num_threads(chosen)
    if before and chosen != before:
        return [f"this run began with {counted(before, 'thread')}; with {chosen} its last bits differ"]
    free = (os.cpu_count() or 1) - load()
    if asked is None and chosen > 1 and free < chosen - 0.5:
        return [
            f"{counted(chosen, 'thread')} to train with, while other programs kept {load():.1f} of {os.cpu_count()} "
            f"processors busy in the last minute; --threads {max(1, round(free))} may be faster"
        ]
    return []


def _before(run: Path | None) -> int | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        if run is not None:
            return max(1, int(read_mapping(run / "environment.json")["threads"]))
    return None
