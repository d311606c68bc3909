"""Save and resume the training state.

A checkpoint contains the peers of all processes, so that a run can be resumed with another number of processes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metamixer.training import checkpoint
from metamixer.training.auto_strength import AutoStrength
from metamixer.training.distributed import ProcessGrid
from metamixer.training.nan_checks import not_finite_weight
from metamixer.training.optimizer import load_state, saved_state
from metamixer.training.optimizer_step import CohortWithLoss, NotFiniteError, Updates
from metamixer.training.running_means import Sums


@dataclass(frozen=True)
class Best:
    """The best peer so far by validation accuracy (negative log-likelihood breaks ties).

    Without validation data it is the first peer that learns, after the last epoch.
    """

    epoch: int
    peer: int
    accuracy: float
    nll: float

    @property
    def order(self) -> tuple[float, float]:
        """Sort key; higher is better."""
        return self.accuracy, -self.nll

    def beats(self, other: Best | None) -> bool:
        """Whether this one is strictly better."""
        return other is None or self.order > other.order


@dataclass
class TrainingState:
    """The state of a trainer.

    Args:
        learner: cohort and loss.
        optimizer: the optimizer.
        updates: the optimizer steps; their factor of the learning rate is saved.
        sums: sums of the epoch, for the share of this process.
        classes: number of classes of the peers.
        step: number of steps done.
        best: the best peer so far.
        best_step: the step after which it was found.
        rate: learning rate of the last step.
        skipped: number of skipped steps in this epoch.
        open_epoch: whether the sums are those of an unfinished epoch.
        strength: strength of mixing, if it is ``auto``.
    """

    learner: CohortWithLoss
    optimizer: Any
    updates: Updates
    sums: Sums
    classes: int
    step: int = 0
    best: Best | None = None
    best_step: int = 0
    rate: float = 0.0
    skipped: int = 0
    open_epoch: bool = False
    strength: AutoStrength | None = None


class Keeper:
    """Writes and reads the checkpoints of a run.

    Args:
        grid: processes.
        folder: the run folder; None: no checkpoints.
        facts: entries of the manifest that must be equal when the run is resumed; values listed in ``NAME_before`` are
            accepted for ``NAME`` too.
    """

    def __init__(self, grid: ProcessGrid, folder: Path | None, facts: Mapping[str, Any]) -> None:
        self.grid = grid
        self.folder = folder / "checkpoints" if folder else None
        self.facts = dict(facts)

    @property
    def last(self) -> str:
        """A message with the last good checkpoint."""
        try:
            found = checkpoint.pointed(self.folder, "LATEST") if self.folder else None
        except checkpoint.CheckpointError:
            found = None
        return f"the last good checkpoint is {found}" if found else "there is no checkpoint yet"

    def save(self, run: TrainingState, *pointers: str, whole: bool) -> Path | None:
        """Write a checkpoint and set the pointers to it; every process has to call this.

        Raises:
            NotFiniteError: a weight is infinite or NaN. Earlier checkpoints are kept.
            OSError: the checkpoint cannot be written.
        """
        if self.folder is None:
            return None
        run.updates.finish()
        wrong = not_finite_weight(run.learner)
        if self.grid.largest(float(bool(wrong)))[0]:
            names = ", ".join(name for name in self.grid.everyone(wrong) if name)
            raise NotFiniteError(f"{names} is not finite after step {run.step}: no checkpoint is written of it")
        sums = run.sums.summed(self.grid.summed)
        weights, owners = checkpoint.weights_of(run.learner), saved_state(run.optimizer)
        if self.grid.groups > 1:
            weights = {name: value.cpu() for name, value in weights.items()}
        path = None
        parts = self.grid.gathered((weights, owners))
        failed = ""
        if self.grid.is_first:
            for other, owned in reversed(parts):
                weights, owners = {**other, **weights}, {**owned, **owners}
            state = {
                "step": run.step,
                "optimizer": owners,
                "sums": sums.state(),
                "best": None if run.best is None else vars(run.best),
                "best_step": run.best_step,
                "factor": run.updates.factor,
                "rate": run.rate,
                "skipped": run.skipped,
                **({"strength": run.strength.value} if run.strength else {}),
                **({"scaler": run.updates.scaler.state_dict()} if run.updates.scaler.is_enabled() else {}),
            }
            facts = {"torch": str(torch.__version__), "world_size": self.grid.world, **self.facts}
            try:
                path = checkpoint.write(self.folder, run.step, weights, state, facts, whole=whole)
                for pointer in pointers:
                    checkpoint.point(self.folder, pointer, path)
                checkpoint.prune(self.folder)
            except OSError as error:
                failed = str(error)
        if failed := self.grid.from_first(failed):  # raised in all processes, so that none waits for another
            raise OSError(failed)
        return path

    def resume(self, run: TrainingState) -> None:
        """Load the latest checkpoint into ``run``; without a checkpoint it does not change.

        Raises:
            CheckpointError: no checkpoint is usable, or it was written with another recipe.
        """
        found = checkpoint.read_latest(self.folder) if self.folder else None
        if found is None:
            return
        for name, value in self.facts.items():
            if not name.endswith("_before") and found.manifest.get(name) not in (
                value,
                *self.facts.get(f"{name}_before", ()),
            ):
                raise checkpoint.CheckpointError(
                    f"{found.path} was written with {name} {found.manifest.get(name)}, this run has {value}"
                )
        if (before := found.manifest.get("world_size")) != self.grid.world and self.grid.is_first:
            warnings.warn(
                f"this run was started by {before} process{'es' * (before != 1)} and is resumed by {self.grid.world}: "
                "the same images in the same order, but not the same bits",
                stacklevel=2,
            )
        state = found.state
        found.load_weights(run.learner, partial=self.grid.groups > 1)
        try:
            load_state(run.optimizer, state["optimizer"])
            if self.grid.share == 0:  # the saved sums include all shares
                run.sums.load(state["sums"], self.grid.device)
            run.open_epoch = state["sums"]["images"] > 0
            run.step, run.skipped, run.best_step = state["step"], state["skipped"], state["best_step"]
            run.updates.factor, run.rate = state["factor"], state["rate"]
            if run.updates.scaler.is_enabled():
                run.updates.scaler.load_state_dict(state["scaler"])
            if run.strength:
                run.strength.value = state["strength"]
            run.best = None if state["best"] is None else Best(**state["best"])
            self._repair_best(found, run)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise checkpoint.CheckpointError(f"the state in {found.path} does not fit this run: {error}") from error

    def _repair_best(self, found: checkpoint.Checkpoint, run: TrainingState) -> None:
        """Restore ``BEST`` if it is missing or damaged and the loaded checkpoint is the best one."""
        assert self.folder is not None  # noqa: S101
        try:
            known = checkpoint.pointed(self.folder, "BEST")
        except checkpoint.CheckpointError as error:
            known = None
            warnings.warn(f"passed over a pointer: {error}", stacklevel=2)
        if known is None and run.best is not None and found.state["best_step"] == run.step and self.grid.is_first:
            checkpoint.point(self.folder, "BEST", found.path)
