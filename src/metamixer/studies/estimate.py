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
    """What is left of a study.

    Args:
        runs: that have not ended.
        seconds: that those will take of which one knows, side by side; None: of none.
        unknown: runs of another cost than all that have ended.
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
    """A checksum of what decides how long an epoch takes, up to loss and mixer: data, networks, training, measuring."""
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
    """How long some runs will take.

    A run takes as long as the median of the runs that had the same data, networks and settings of training, on the same
    machine with the same number of threads; if some of them had its method and mixer too, of those. What their epochs
    took is scaled to its number of epochs; starting and measuring is added as it was.

    Args:
        cells: the runs that have not ended.
        measure: of the study.
        lines: runs that have ended.
        jobs: runs side by side.
        threads: of each run.
        machine: as in :class:`Line`.
        elapsed: seconds that runs which have begun have taken, by checksum.
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
