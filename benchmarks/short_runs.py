"""What a short run of a study costs: by itself, and forked from a process that has everything imported."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.results import Measured, Section, ratios
from benchmarks.settings import Settings
from metamixer.studies import Study
from metamixer.studies.forks import Forks
from metamixer.studies.local_runner import begin

FORKED, ALONE = "forked runs", "runs of a process each"


def measure(settings: Settings) -> list[Section]:
    """One section: processor seconds of a study of a few tiny runs, with the process that they are forked from."""
    count = 1 if settings.quick else 10
    networks = [{"name": "resnet8", "widths": [4, 4, 8, 8]}] * 2
    study = Study.of(
        {
            "recipe": {
                "data": {"name": "fashion-mini", "train_limit": 20, "image_size": 12},
                "peers": networks,
                "train": {"epochs": 2, "batch_size": 50, "accelerator": "cpu"},
            },
            "seeds": list(range(count)),
        }
    )
    samples: dict[str, list[float]] = {FORKED: [], ALONE: []}
    for _ in range(1 if settings.quick else min(settings.rounds, 3)):
        for name in samples:
            samples[name].append(_processor_seconds(study, forked=name == FORKED) / count)
    measured = tuple(Measured(name, tuple(found)) for name, found in samples.items())
    title = f"short runs: {count} of 200 images of 12x12, 2 epochs"
    notes = ("Processor seconds a run, with all that is imported for it.",)
    return [Section(title, measured, ratios(measured, [(FORKED, ALONE, 1.0, "short-run")]), notes=notes)]


def _processor_seconds(study: Study, *, forked: bool) -> float:
    before = os.times()
    with TemporaryDirectory() as folder, Forks("metamixer.studies", 1, forked=forked) as forks:
        for cell in study.cells:
            child = begin(cell, Path(folder), study.content.measure, forks)
            while (found := child.look()) is None:
                time.sleep(0.05)
            if found.fault is not None:
                raise RuntimeError(found.fault)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system
