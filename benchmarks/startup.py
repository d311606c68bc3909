"""How long a fresh process takes until it can do something."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from benchmarks.results import Section, difference, plainly, ratios
from benchmarks.settings import Settings
from benchmarks.timing import Case, Work, interleave

HELP, LIST = "metamixer --help", "metamixer list"
TORCH, BARE = "import torch", "import metamixer"
PARTS = "from metamixer import Cohort, MetaMixer, DML, train_step"
LOOP = "from metamixer import Cohort, MetaMixer, DML, Trainer"
PREDICT, FIRST = "metamixer predict of one image", "first training step"
STEP = """
import os, sys, tempfile
from pathlib import Path
from metamixer.config.recipe import Recipe
from metamixer.runs.run import train
from metamixer.training.callbacks import Callback

class End(Callback):
    def on_step(self, record):
        os._exit(0)

train(Recipe.of({}, ["data.name=fashion-mini"]), Path(tempfile.mkdtemp(dir=sys.argv[1])), callbacks=[End()])
"""
_MODULE = [sys.executable, "-P", "-m", "metamixer"]  # -P: not the folder one is in


def measure(settings: Settings) -> list[Section]:
    """One section: commands, a training until its first step, imports, and what our imports add to torch's."""
    commands = {
        HELP: [*_MODULE, "--help"],
        LIST: [*_MODULE, "list"],
        **{code: [sys.executable, "-c", code] for code in (BARE, TORCH, PARTS, *(() if settings.quick else (LOOP,)))},
    }
    # The first round reads the files from disk; without it the order would decide who pays for that.
    rounds = 1 if settings.quick else settings.rounds
    with TemporaryDirectory() as folder:
        commands |= _runs(Path(folder))
        cases = [Case(name, partial(_process, command)) for name, command in commands.items()]
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
    figures += ratios(measured, [(PREDICT, TORCH, 1.0, "predict"), (FIRST, TORCH, 1.0, "first-step")])
    return [Section("startup", measured, tuple(figures), missing, ("A new process each time, its files in memory.",))]


def _runs(folder: Path) -> dict[str, list[str]]:
    """A training of the default networks up to its first step, and a prediction by a run that has ended."""
    run, image = folder / "run", folder / "image.png"
    Image.new("L", (28, 28), 90).save(image)
    few = ["--data", "fashion-mini", "data.train_limit=10", "train.epochs=1", "--mixer", "none"]
    _process([*_MODULE, "train", *few, "--out", str(run)])()
    return {
        PREDICT: [*_MODULE, "predict", str(run), str(image)],
        FIRST: [sys.executable, "-c", STEP, str(folder)],
    }


def _process(command: list[str]) -> Work:
    return lambda: subprocess.run(command, capture_output=True, check=True, timeout=120)  # noqa: S603
