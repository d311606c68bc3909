"""Every suite that was asked for, one after the other, and the folder with what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.report import Findings, write
from benchmarks.results import Missing, Section, Suite
from benchmarks.settings import Settings
from metamixer.runs.environment import environment

SUITES: Mapping[str, tuple[str, ...]] = {
    "step": ("step", "in_turn", "overhead"),
    "data": ("data",),
    "peers": ("peers",),
    "cache": ("disk_cache",),
    "shards": ("shards",),
    "memory": ("memory",),
    "scaling": ("scaling",),
    "startup": ("startup",),
    "floor": ("floor",),
    "studies": ("short_runs",),
}
"""The modules of each suite; every one has ``measure(settings) -> list[Section]``."""


def run(
    settings: Settings, suites: Sequence[str], folder: Path, report: Callable[[str], None] = lambda line: None
) -> Findings:
    """Measure, and write ``bench.json`` and ``bench.md`` after each suite: hours are not lost to a stop.

    Args:
        settings: what and how large.
        suites: of :data:`SUITES`.
        folder: is made; files of an earlier run are replaced.
        report: gets a line when a suite begins and ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done: list[Suite] = []
    findings = Findings(settings, environment(), ())
    for name in suites:
        report(f"suite {name} ...")
        began = time.perf_counter()
        sections: list[Section] = []
        for module in SUITES[name]:
            try:
                sections += import_module(f"benchmarks.{module}").measure(settings)
            except Exception as error:  # one suite that cannot run costs its own numbers alone
                sections.append(Section(module, missing=(Missing(module, f"{type(error).__name__}: {error}"),)))
        done.append(Suite(name, tuple(sections), time.perf_counter() - began))
        report(f"suite {name}: {done[-1].seconds:.0f} s")
        findings = Findings(settings, environment(), tuple(done))
        write(findings, folder)
    return findings
