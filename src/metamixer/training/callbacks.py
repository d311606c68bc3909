"""What looks on while a cohort trains, and what it is shown. Callbacks look; they do not touch."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from metamixer.core.files import write_whole
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


class Files:
    """``metrics.jsonl``, ``metrics.csv`` and TensorBoard events in a run's folder, one row an epoch.

    A resumed run first drops the rows after the checkpoint, so that each epoch stands there once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, float]] = []
        self._events: Any = None

    def on_start(self, start: Start) -> None:
        """Keep the rows up to ``start.step`` and open the event file."""
        from tensorboardX import SummaryWriter

        path = self._folder / "metrics.jsonl"
        kept: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the last line of a killed process
                    continue
                if record["step"] <= start.step:
                    kept.append(line)
                    self._rows.append(record["flat"])
        write_whole(path, "".join(line + "\n" for line in kept))
        self._write_csv()
        with self._events_may_fail():
            self._events = SummaryWriter(str(self._folder / "events"), purge_step=start.step + 1)

    def on_step(self, record: StepRecord) -> None:
        """Steps are not written: reading them would stall the device."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Append one row to each file."""
        row = record.flat()
        self._rows.append(row)
        full = asdict(record) | record.speed() | {"val": record.val.as_dict() if record.val else None, "flat": row}
        with (self._folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(full) + "\n")
        self._write_csv()
        if self._events is not None:
            with self._events_may_fail():
                for name, value in row.items():
                    if name not in ("epoch", "step"):
                        self._events.add_scalar(name, value, record.step)
                self._events.flush()

    def on_end(self) -> None:
        """Close the event file."""
        if self._events is not None:
            with self._events_may_fail():
                self._events.close()

    @contextmanager
    def _events_may_fail(self) -> Iterator[None]:
        """The event file is a view of what the other files hold: training goes on without it."""
        try:
            yield
        except Exception as error:
            self._events = None
            warnings.warn(
                f"TensorBoard events are not written any more ({error}); training goes on, metrics.jsonl has all of it",
                stacklevel=2,
            )

    def _write_csv(self) -> None:
        # An epoch without validation has fewer columns, so the names come from all rows.
        if names := list(dict.fromkeys(name for row in self._rows for name in row)):
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=names)
            writer.writeheader()
            writer.writerows(self._rows)
            write_whole(self._folder / "metrics.csv", text.getvalue(), newline="")
