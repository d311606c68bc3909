"""Read-only callbacks, and the records they receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from metamixer.core.types import Terms
from metamixer.evaluation.evaluate import Report


@dataclass(frozen=True)
class Start:
    """A training that starts, or resumes at ``step``; ``reading`` as in :class:`EpochRecord`; ``notes`` to show."""

    epochs: int
    steps_per_epoch: int
    step: int
    peers: tuple[str, ...]
    reading: str = ""
    notes: tuple[str, ...] = ()


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
        val: metrics on the validation split, or None.
        images_per_second: of training, validation left out.
        waiting: the share of training time in which the step waited for data.
        seconds: the whole epoch.
        reading: as ``TrainLoader.reading``; empty for loaders that do not say.
        skipped: steps that changed nothing because a loss or gradient was not finite.
        strength: of mixing in this epoch, where a mixer has ``strength="auto"``.
        overfitting: r at its end, which strength follows (:mod:`metamixer.training.auto_strength`).
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
        """What computation would reach if it never waited for data.

        On an accelerator an upper bound: it may be computing while this process waits.
        """
        return self.images_per_second / max(1 - self.waiting, 1e-9)

    @property
    def data_images_per_second(self) -> float | None:
        """Images per second of the data alone; None if unknown, because workers make them in parallel."""
        if self.reading not in ("memory", "augment", "disk") or not self.waiting:
            return None
        return self.images_per_second / self.waiting

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a line of ``metrics.jsonl`` holds them."""
        return asdict(self) | self.speed() | {"val": self.val.as_dict() if self.val else None}

    def flat(self) -> dict[str, float]:
        """One level of names, as in ``distill/1`` and ``val/accuracy/ensemble``, for tables and event files."""
        return flat_row(self.as_dict())

    def speed(self) -> dict[str, float]:
        """Images per second overall, of computation and of data as far as known, and the share of waiting."""
        data = self.data_images_per_second
        return {
            "images_per_second": self.images_per_second,
            "compute_images_per_second": self.compute_images_per_second,
            **({} if data is None else {"data_images_per_second": data}),
            "waiting": self.waiting,
        }


def flat_row(line: Mapping[str, Any]) -> dict[str, float]:
    """:meth:`EpochRecord.flat` of what :meth:`EpochRecord.as_dict` gave."""
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
        """Before the first step."""

    def on_step(self, record: StepRecord) -> None:
        """After each step."""

    def on_epoch(self, record: EpochRecord) -> None:
        """After each epoch and its validation."""

    def on_end(self) -> None:
        """At the very end."""
