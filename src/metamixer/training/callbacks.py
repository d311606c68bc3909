"""Read-only callbacks, and the records they receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from metamixer.core.types import Terms
from metamixer.evaluation.evaluate import Report


@dataclass(frozen=True)
class Start:
    """The start of training, or of a resumed run at ``step``; ``reading`` as in :class:`EpochRecord`."""

    epochs: int
    steps_per_epoch: int
    step: int
    peers: tuple[str, ...]
    reading: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepRecord:
    """One step. The terms are on the device; reading them synchronizes, so read them rarely.

    With several processes they are those of the first process, for its share of the images. They are empty if the step
    was skipped.
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
        epoch: number of the epoch, from 1.
        step: number of steps done so far.
        lr: learning rate of the last step.
        terms: mean of each term for each peer.
        train_accuracy: for each peer the share of mixed training samples for which it predicts the class with the
            largest share in the target.
        val: metrics on the validation split, or None.
        images_per_second: training speed, without validation.
        waiting: share of training time in which the step waited for data.
        seconds: duration of the whole epoch.
        reading: as ``TrainLoader.reading``; empty for loaders without it.
        skipped: number of steps skipped because a loss or gradient was not finite.
        strength: strength of mixing in this epoch, for a mixer with ``strength="auto"``.
        overfitting: r at the end of the epoch, which sets the strength (:mod:`metamixer.training.auto_strength`).
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
    strength: float | None = None
    overfitting: float | None = None

    @property
    def compute_images_per_second(self) -> float:
        """The speed of computation without waiting for data.

        On an accelerator this is an upper bound, because the device may compute while this process waits.
        """
        return self.images_per_second / max(1 - self.waiting, 1e-9)

    @property
    def data_images_per_second(self) -> float | None:
        """The speed of loading data in images per second; None if unknown, because workers load in parallel."""
        if self.reading not in ("memory", "augment", "disk") or not self.waiting:
            return None
        return self.images_per_second / self.waiting

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in a line of ``metrics.jsonl``."""
        return asdict(self) | self.speed() | {"val": self.val.as_dict() if self.val else None}

    def flat(self) -> dict[str, float]:
        """Values by flat names, such as ``distill/1`` and ``val/accuracy/ensemble``, for tables and event files."""
        return flat_row(self.as_dict())

    def speed(self) -> dict[str, float]:
        """Images per second in total, of computation, and of data if known; and the share of waiting."""
        data = self.data_images_per_second
        return {
            "images_per_second": self.images_per_second,
            "compute_images_per_second": self.compute_images_per_second,
            **({} if data is None else {"data_images_per_second": data}),
            "waiting": self.waiting,
        }


def flat_row(line: Mapping[str, Any]) -> dict[str, float]:
    """:meth:`EpochRecord.flat` for the output of :meth:`EpochRecord.as_dict`."""
    row: dict[str, float] = {name: line[name] for name in ("epoch", "step", "lr")}
    for name, values in {**line["terms"], "train_accuracy": line["train_accuracy"]}.items():
        row |= {f"{name}/{peer}": value for peer, value in enumerate(values)}
    if (val := line["val"]) is not None:
        for label, score in (*enumerate(val["peers"]), ("ensemble", val["ensemble"])):
            row |= {f"val/accuracy/{label}": score["accuracy"], f"val/nll/{label}": score["nll"]}
        row["val/agreement"] = val["agreement"]
    if line["skipped"]:
        row["skipped"] = line["skipped"]
    row |= {name: line[name] for name in ("strength", "overfitting") if line.get(name) is not None}
    speed = ("images_per_second", "compute_images_per_second", "data_images_per_second", "waiting", "seconds")
    return row | {name: line[name] for name in speed if name in line}


class Callback(Protocol):
    """Called at the start, after every step and epoch, and at the end (also after a signal or an error)."""

    def on_start(self, start: Start) -> None:
        """Called before the first step."""

    def on_step(self, record: StepRecord) -> None:
        """Called after each step."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Called after each epoch and its validation."""

    def on_end(self) -> None:
        """Called at the very end."""
