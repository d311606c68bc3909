"""Estimate the remaining time of a study from its finished runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from statistics import median

from metamixer.config.recipe import Part, Recipe
from metamixer.core.text import counted, duration
from metamixer.studies.results import Line
from metamixer.studies.study_file import Cell, Measure
from metamixer.training.optimizer import Optim


@dataclass(frozen=True)
class Left:
    """The remaining work of a study.

    Args:
        runs: number of runs that have not ended.
        seconds: estimated time of those with a known cost, run in parallel; None if no cost is known.
        unknown: number of runs whose cost differs from that of all finished runs.
    """

    runs: int
    seconds: float | None
    unknown: int

    def __str__(self) -> str:
        if self.seconds is None:
            return "unknown until the first run has ended" if self.runs else "nothing"
        more = f" and {counted(self.unknown, 'run')} of unknown length" if self.unknown else ""
        return f"about {duration(self.seconds)}{more}"


def cost_of(recipe: Recipe, measure: Measure) -> str:
    """A checksum of all that affects the time of an epoch except loss and mixer: data, networks, training, metrics."""
    plain = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"seed": 0}),
            "mixer": Part(name="none"),
            "loss": Part(name="independent"),
            "optim": Optim(),
            "train": replace(recipe.train, seed=0, epochs=1),
        }
    )
    return sha256(f"{plain.digest} {measure.model_dump_json()}".encode()).hexdigest()[:8]


def left(
    cells: Sequence[Cell],
    measure: Measure,
    lines: Collection[Line],
    *,
    jobs: int,
    threads: int,
    machine: str,
    elapsed: Mapping[str, float],
) -> Left:
    """Estimate the time of the remaining runs.

    The estimate for a run is the median over finished runs with the same data, networks and training settings, on the
    same machine with the same number of threads; only those with the same method and mixer, if there are any. The time
    of their epochs is scaled to the number of epochs of the run; the time of startup and evaluation is added.

    Args:
        cells: runs that have not ended.
        measure: measurements of the study.
        lines: finished runs.
        jobs: number of parallel runs.
        threads: number of threads per run.
        machine: as in :class:`Line`.
        elapsed: seconds so far of started runs, by checksum.
    """
    same = [line for line in lines if (line.machine, line.threads) == (machine, threads)]
    rests, unknown = [], 0
    for cell in cells:
        found = _seconds(cell, cost_of(cell.recipe, measure), same)
        if found is None:
            unknown += 1
        else:
            rests.append(max(0.0, found - elapsed.get(cell.digest, 0.0)))
    seconds = max(sum(rests) / jobs, max(rests)) if rests else None
    return Left(len(cells), seconds, unknown)


def _seconds(cell: Cell, cost: str, lines: Collection[Line]) -> float | None:
    alike = [line for line in lines if line.cost == cost]
    names = [dict(cell.row).get(axis) for axis in ("methods", "mixers")]
    own = [line for line in alike if [line.row.get(axis) for axis in ("methods", "mixers")] == names]
    epochs = [line.seconds / line.epochs for line in own or alike if line.seconds is not None and line.epochs]
    beside = [line.process_seconds - (line.seconds or 0.0) for line in alike if line.process_seconds is not None]
    if not epochs:
        return None
    return cell.recipe.train.epochs * median(epochs) + (median(beside) if beside else 0.0)
