"""How long a fresh process takes until it can do something."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import torch

from benchmarks.results import Section, difference, plainly
from benchmarks.settings import Settings
from benchmarks.timing import Case, Work, interleave

HELP, LIST = "metamixer --help", "metamixer list"
TORCH, BARE = "import torch", "import metamixer"
PARTS = "from metamixer import Cohort, MetaMixer, DML, train_step"
LOOP = "from metamixer import Cohort, MetaMixer, DML, Trainer"
_MODULE = [sys.executable, "-P", "-m", "metamixer"]  # -P: not the folder one is in


def measure(settings: Settings) -> list[Section]:
    """One section: commands, imports, and what our imports add to torch's."""
    commands = {
        HELP: [*_MODULE, "--help"],
        LIST: [*_MODULE, "list"],
        **{code: [sys.executable, "-c", code] for code in (BARE, TORCH, PARTS, *(() if settings.quick else (LOOP,)))},
    }
    cases = [Case(name, partial(_process, command)) for name, command in commands.items()]
    # The first round reads the files from disk; without it the order would decide who pays for that.
    rounds = 1 if settings.quick else settings.rounds
    measured, missing = interleave(cases, rounds, torch.device("cpu"), warmup=not settings.quick)
    found = {each.name: each for each in measured}
    figures = [plainly(found[name], bar=bar) for name, bar in ((HELP, "help"), (LIST, "list")) if name in found]
    # The trainer's import is mostly Fabric's. It has no bar, and is shown beside the one that has.
    figures += [
        difference(f"{title}, less that of torch", found[code], found[TORCH], bar=bar)
        for title, code, bar in (
            ("import of cohort, mixer, loss and step", PARTS, "import"),
            ("import of these and the trainer", LOOP, ""),
        )
        if code in found and TORCH in found
    ]
    return [Section("startup", measured, tuple(figures), missing, ("A new process each time, its files in memory.",))]


def _process(command: list[str]) -> Work:
    return lambda: subprocess.run(command, capture_output=True, check=True, timeout=120)  # noqa: S603
