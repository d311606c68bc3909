"""The process that ``memory`` starts for each case: prints the peak in MiB."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.in_turn import IN_TURN, RECOMPUTED, steps_of
from benchmarks.settings import Settings, Shape
from benchmarks.work import batch_of, joint_step, plain_steps, repeated
from metamixer.cohort.cohort import Cohort
from metamixer.losses import DML
from metamixer.mixers import MetaMixer, NoMix

WAYS = {"DML, 4 peers in turn": IN_TURN, "DML, 4 peers, checkpointing": RECOMPUTED}
CASES = ("1 plain", "DML, 2 peers", "MetaMixer, 2 peers", "DML, 4 peers", *WAYS)
_STATUS = Path("/proc/self/status")


def peak(settings: Settings, network: str, precision: str, case: str) -> float:
    """MiB that a few steps of the case take beside the batch."""
    batch = batch_of(settings, settings.shape(network), companions=case.startswith("MetaMixer"))
    _warm_up(settings, precision)
    base = _start_counting()
    if case == "1 plain":
        step = plain_steps([settings.network(network)], batch, settings, precision)
        work = repeated(lambda seed: step(), 3)
    elif case in WAYS:
        work = repeated(steps_of(settings, network, WAYS[case], batch, precision), 3)
    else:
        cohort = Cohort([settings.network(network) for _ in range(4 if "4" in case else 2)])
        mixer = MetaMixer(local_probability=1.0) if case.startswith("MetaMixer") else NoMix()
        work = repeated(joint_step(cohort, mixer, DML(), batch, settings, precision), 3)
    work()
    if settings.where.type == "cuda":
        return torch.cuda.max_memory_allocated(settings.where) / 2**20
    return _resident("VmHWM") - base


def _warm_up(settings: Settings, precision: str) -> None:
    """A tiny step: code that is loaded when it is first used is no memory of the networks."""
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, settings.classes))
    network = nn.Sequential(*layers).to(settings.where)
    plain_steps([network], batch_of(settings, Shape(2, 8)), settings, precision)()


def _start_counting() -> float:
    """What is resident now; from here on the peak is counted anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _resident("VmHWM")
    return _resident("VmRSS")


def _resident(field: str) -> float:
    """MiB.

    Linux hands ``ru_maxrss`` on to a program that is started, so a child's would begin with what its parent used. The
    fields of ``/proc`` do not; ``ru_maxrss`` is for systems without them.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 2**20)


def _main(job: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in job["settings"].items()
    }
    torch.set_num_threads(job["threads"])
    print(peak(Settings(**fields), job["network"], job["precision"], job["case"]))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
