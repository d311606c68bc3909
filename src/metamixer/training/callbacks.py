"""What looks on while a cohort trains, and what it is shown. Callbacks look; they do not touch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from metamixer.core.types import Terms
from metamixer.evaluation.evaluate import Report


@dataclass(frozen=True)
class Start:
    """The size of what begins, or goes on at ``step``; ``reading`` as in :class:`EpochRecord`."""

    epochs: int
    steps_per_epoch: int
    step: int
    peers: tuple[str, ...]
    reading: str = ""


@dataclass(frozen=True)
class StepRecord:
    """One step. The terms are still on the device: reading them waits for it, so read them seldom.

    With several processes they are those of the first one's share of the images; none if the step was skipped.
    """

    epoch: int
    step: int
    images: int
    terms: Terms
    lr: float
    waited: float
    seconds: float


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Args:
        epoch: counted from 1.
        step: steps done so far.
        lr: of its last step.
        terms: the mean of each term for each peer.
        train_accuracy: for each peer the share of training samples, as mixed, whose likeliest target class is named.
        val: figures on the validation split, or None.
        images_per_second: of training, validation left out.
        waiting: the share of training time in which the step waited for data.
        seconds: the whole epoch.
        reading: as ``TrainLoader.reading``; empty for loaders that do not say.
        skipped: steps that changed nothing because a loss or gradient was not finite.
    """

    epoch: int
    step: int
    lr: float
    terms: dict[str, list[float]]
    train_accuracy: list[float]
    val: Report | None
    images_per_second: float
    waiting: float
    seconds: float
    reading: str = ""
    skipped: int = 0

    @property
    def compute_images_per_second(self) -> float:
        """What computation would reach if it never waited for data.

        On an accelerator an upper bound: it may be computing while this process waits.
        """
        return self.images_per_second / max(1 - self.waiting, 1e-9)

    @property
    def data_images_per_second(self) -> float | None:
        """What the data would reach without computation; None where they are made beside it, so that none can tell."""
        if self.reading not in ("memory", "disk") or not self.waiting:
            return None
        return self.images_per_second / self.waiting

    def flat(self) -> dict[str, float]:
        """One level of names, as in ``distill/1`` and ``val/accuracy/ensemble``, for tables and event files."""
        row: dict[str, float] = {"epoch": self.epoch, "step": self.step, "lr": self.lr}
        for name, values in {**self.terms, "train_accuracy": self.train_accuracy}.items():
            row |= {f"{name}/{peer}": value for peer, value in enumerate(values)}
        if self.val is not None:
            for index, score in enumerate(self.val.rows):
                label = "ensemble" if index == len(self.val.peers) else index
                row |= {f"val/accuracy/{label}": score.accuracy, f"val/nll/{label}": score.nll}
            row["val/agreement"] = self.val.agreement
        if self.skipped:
            row["skipped"] = self.skipped
        return row | self.speed() | {"seconds": self.seconds}

    def speed(self) -> dict[str, float]:
        """Images per second of the whole and of each side as far as it is known, and the share of waiting."""
        data = self.data_images_per_second
        return {
            "images_per_second": self.images_per_second,
            "compute_images_per_second": self.compute_images_per_second,
            **({} if data is None else {"data_images_per_second": data}),
            "waiting": self.waiting,
        }


class Callback(Protocol):
    """Is shown the start, every step, every epoch and the end (also the end by a signal or an error)."""

    def on_start(self, start: Start) -> None:
        """Before the first step."""

    def on_step(self, record: StepRecord) -> None:
        """After each step."""

    def on_epoch(self, record: EpochRecord) -> None:
        """After each epoch and its validation."""

    def on_end(self) -> None:
        """At the very end."""
