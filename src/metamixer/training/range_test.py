"""Learning-rate range test: a short training run in which the rate rises exponentially (Smith, arXiv 1506.01186)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.plan import Mixer
from metamixer.core.progress import watched
from metamixer.core.types import Batch, total
from metamixer.training.auto_strength import is_auto
from metamixer.training.callbacks import EpochRecord, Start, StepRecord
from metamixer.training.distributed import ProcessGrid
from metamixer.training.optimizer import Optim
from metamixer.training.optimizer_step import NotFiniteError, TrainingError
from metamixer.training.peer_settings import PeerSettings
from metamixer.training.settings import TrainSettings
from metamixer.training.trainer import Trainer

STEPS = 100
RANGES = {"sgd": (1e-5, 10.0), "adamw": (1e-6, 1.0)}
_OLD = 0.9  # decay of the running mean of the loss
_BELOW = 2.0


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Args:
        rates: learning rate of each step.
        losses: mean loss of the peers that learn, as a running mean up to each step; NaN if the step failed.
        lr: half of the rate with the smallest loss.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    lr: float


def range_test(
    cohort: Cohort,
    mixer: Mixer,
    loss: nn.Module,
    train: Any,
    settings: TrainSettings,
    optim: Optim,
    *,
    grid: ProcessGrid,
    peers: Sequence[PeerSettings] = (),
    names: Sequence[str] | None = None,
) -> RangeTest:
    """Train for :data:`STEPS` steps while the learning rate rises over the range of the optimizer.

    The test is seeded like training: the same parts give the same rate, in all processes.

    Args:
        cohort, mixer, loss: parts for this test only, because it changes them.
        train: training batches.
        settings: settings of the loop.
        optim: optimizer; its schedule and rate are not used.
        grid: the launched processes of the run.
        peers: settings of each peer.
        names: names of the peers.

    Raises:
        TrainingError: the loss is not finite from the first steps on, or does not decrease at any rate.
    """
    if is_auto(mixer):
        mixer = replace(mixer, strength=0.0)  # type: ignore[type-var]  # the strength at the start of training
    first = _First(train, min(STEPS, len(train)))
    epochs = -(-STEPS // len(first))
    seen = _Losses(len(cohort.learners))
    low, high = RANGES[optim.name]
    trainer = Trainer(
        cohort, mixer, loss,
        replace(settings, epochs=epochs, patience=None, ema=None, continued=(), on_nonfinite="skip"),
        optim=_Rising(**{**vars(optim), "lr": high, "low": low, "steps": epochs * len(first)}),
        grid=grid, peers=peers, names=names, callbacks=[seen],
    )  # fmt: skip
    with suppress(NotFiniteError):  # too many consecutive skipped steps: the end of the range
        trainer.fit(first)
    rates = tuple(low * (high / low) ** (step / (STEPS - 1)) for step in range(STEPS))
    result: RangeTest | str = ""
    if grid.is_first:  # only its callbacks get the losses
        try:
            result = found(rates, seen.values)
        except TrainingError as error:
            result = str(error)
    result = grid.from_first(result)
    if isinstance(result, str):
        raise TrainingError(result)
    return result


def found(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Choose the learning rate from the losses of a range test.

    Raises:
        TrainingError: the loss does not decrease at any rate.
    """
    mean, weight, smooth = 0.0, 0.0, []
    for value in [*losses, *[math.nan] * len(rates)][: len(rates)]:
        if math.isfinite(value):
            mean, weight = _OLD * mean + (1 - _OLD) * value, _OLD * weight + 1 - _OLD
        smooth.append(mean / weight if math.isfinite(value) else math.nan)
    begin = len(rates) // 10  # in these steps the rate is too low to change the loss
    before = [value for value in losses[:begin] if math.isfinite(value)]
    known = [index for index in range(begin, len(rates)) if math.isfinite(smooth[index])]
    lowest = min(known, key=smooth.__getitem__, default=-1)
    if lowest < 0 or not before or smooth[lowest] >= sum(before) / len(before):
        raise TrainingError("optim.lr=auto: the loss falls at no learning rate of the range test; accepted: a number")
    return RangeTest(tuple(rates), tuple(smooth), float(f"{rates[lowest] / _BELOW:.2g}"))


@dataclass(frozen=True)
class _Rising(Optim):
    """A rate that rises from ``low`` to ``lr`` in the first :data:`STEPS` of ``steps`` steps."""

    low: float = 1e-5
    steps: int = STEPS

    def rate(self, progress: float) -> float:
        share = min(1.0, round(progress * self.steps) / (STEPS - 1))
        return float(self.low * (self.peak / self.low) ** share)


class _First:
    """The first batches of every epoch."""

    def __init__(self, given: Any, count: int) -> None:
        self.given, self.count = given, count
        self.class_counts = getattr(given, "class_counts", None)

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        return islice(self.given.epoch(epoch, start), self.count - start)

    def shared(self, number: int, parts: int) -> _First:
        return _First(self.given.shared(number, parts), self.count)


class _Losses:
    """Records the loss of each step."""

    def __init__(self, learners: int) -> None:
        self.learners, self.values = learners, list[float]()

    def on_start(self, start: Start) -> None:
        self._bar = iter(watched(range(STEPS), "learning rate range test", STEPS))

    def on_step(self, record: StepRecord) -> None:
        next(self._bar, None)
        self.values.append(float(total(record.terms)) / self.learners if record.terms else math.nan)

    def on_epoch(self, record: EpochRecord) -> None: ...

    def on_end(self) -> None: ...
