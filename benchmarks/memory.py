"""Peak memory of a step, each case in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.memory_child import CASES, WAYS
from benchmarks.results import Figure, Measured, Missing, Section, ratios
from benchmarks.settings import Settings, spelled

_NOTES = (
    "The peak of resident memory over three steps, less what was resident when torch was imported, the batch made and "
    "a tiny step done (so that libraries are loaded). On a GPU: what torch had allocated at most, with the batch.",
)


def measure(settings: Settings) -> list[Section]:
    """One section for each precision, on the first network."""
    precisions = settings.precisions[: 1 if settings.quick else None]
    return [peaks(settings, settings.networks[0], precision) for precision in precisions]


def peaks(settings: Settings, name: str, precision: str) -> Section:
    """1 plain step, 2 and 4 peers with DML, 2 peers with MetaMixer, 4 peers in ways that take less."""
    cases = CASES[:2] if settings.quick else CASES  # each is a process that imports torch
    samples: dict[str, list[float]] = {case: [] for case in cases}
    missing: dict[str, Missing] = {}
    for _ in range(1 if settings.quick else min(settings.rounds, 3)):  # it varies little
        for case in cases:
            if case in missing:
                continue
            try:
                samples[case].append(_child(settings, name, precision, case))
            except (subprocess.SubprocessError, ValueError) as error:
                detail = getattr(error, "stderr", None) or str(error)
                missing[case] = Missing(case, detail.strip().splitlines()[-1][:300])
    measured = tuple(Measured(case, tuple(samples[case]), "MiB") for case in cases if case not in missing)
    return Section(
        f"memory: {name}, {spelled(precision)}, batch {settings.shape(name).batch}",
        measured,
        _figures(measured),
        tuple(missing.values()),
        _NOTES,
    )


def _figures(measured: tuple[Measured, ...]) -> tuple[Figure, ...]:
    plain = "1 plain"
    return ratios(
        measured,
        [
            ("DML, 2 peers", plain, 1.0, "memory"),
            ("DML, 2 peers", plain, 2.0, ""),
            ("MetaMixer, 2 peers", plain, 2.0, ""),
            ("DML, 4 peers", plain, 4.0, ""),
            *((way, "DML, 4 peers", 1.0, "") for way in WAYS),
        ],
    )


def _child(settings: Settings, name: str, precision: str, case: str) -> float:
    job = {
        "settings": asdict(settings),
        "network": name,
        "precision": precision,
        "case": case,
        "threads": torch.get_num_threads(),
    }
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "benchmarks.memory_child", json.dumps(job)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return float(done.stdout.strip().splitlines()[-1])
