"""Several processes of one run, as torchrun would start them, but from a server that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "lightning_fabric", "metamixer.training.trainer", "metamixer.runs.run", "tests.toys"]
)


def _port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives a process."""
    return {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def _run(work: Callable[..., Any], words: tuple[Any, ...], place: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    try:
        found = (True, work(*words))
    except BaseException as error:
        found = (False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    (place / f"{variables['RANK']}.result").write_bytes(pickle.dumps(found))


def start(place: Path, world: int, work: Callable[..., Any], *words: Any) -> list[Any]:
    """Processes that run ``work(*words)`` together; their results come by :func:`results`."""
    port = _port()
    place.mkdir(parents=True, exist_ok=True)
    started = []
    for rank in range(world):
        process = _CONTEXT.Process(target=_run, args=(work, words, place, environment(rank, world, port)))
        process.start()
        started.append(process)
    return started


def results(place: Path, started: list[Any], timeout: float = 90.0) -> list[tuple[bool, Any] | None]:
    """Of each process whether it went well, and what it returned or how it failed; None if it died."""
    for process in started:
        process.join(timeout)
    if late := [process for process in started if process.is_alive()]:
        for process in late:
            process.kill()
        raise AssertionError(f"{len(late)} of {len(started)} processes did not end in {timeout} s")
    files = [place / f"{rank}.result" for rank in range(len(started))]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def together(place: Path, world: int, work: Callable[..., Any], *words: Any) -> list[Any]:
    """What ``work(*words)`` returns in each of so many processes."""
    found = results(place, start(place, world, work, *words))
    for each in found:
        assert each is not None
        assert each[0], each[1]
    return [each[1] for each in found if each is not None]
