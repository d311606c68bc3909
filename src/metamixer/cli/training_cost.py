"""What a training costs, by its first steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from metamixer.core.text import counted, duration
from metamixer.training.half_precision import slowdown

if TYPE_CHECKING:
    from metamixer.config.recipe import Recipe
    from metamixer.data import Data
    from metamixer.training.callbacks import EpochRecord, Start, StepRecord

_STEPS, _SECONDS, _MOST = 4, 2.0, 10.0  # so many steps that took so long, or fewer that took long
_SHORT, _LONG = 60.0, 3600.0  # seconds of a training that nobody waits for, and of one to think about
_LARGE = 96  # pixels; half of them still show an object


class Measured(Exception):
    """The cost is known, and nothing else was asked for."""


class TrainingCost:
    """A callback that times the first steps, then says once what an epoch and the training take.

    The first step is left out, as it is slower. Validation is counted as a third of a training step for as many images.

    Args:
        recipe: of the run.
        data: of the run.
        say: shows a line.
        device: ``cpu`` or another.
        only: stop after that, by :class:`Measured`.
        clock: gives seconds.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Data,
        say: Callable[[str], None],
        device: str,
        only: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._recipe, self._data, self._say, self._device = recipe, data, say, device
        self._only, self._clock = only, clock
        self._began, self._steps, self._done = 0.0, 0, False

    def on_start(self, start: Start) -> None:
        """Take over the number of steps."""
        self._start, self._total = start, start.epochs * start.steps_per_epoch
        self._done = start.step >= self._total

    def on_step(self, record: StepRecord) -> None:
        """Time it."""
        if self._done:
            return
        self._steps += 1
        last = record.step == self._total
        if self._steps > 1:
            taken = self._clock() - self._began
            enough = self._steps > _STEPS and taken >= _SECONDS
            if not (enough or taken >= _MOST or last):
                return
        _wait(record)  # a GPU may be behind
        if self._steps == 1 and not last:
            self._began = self._clock()
            return
        self._done = True
        self._tell((self._clock() - self._began) / (self._steps - 1) if self._steps > 1 else record.seconds)

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch with its validation is no step: what was not measured by then begins anew."""
        self._steps = 0

    def on_end(self) -> None:
        """Nothing is left to do."""

    def _tell(self, step: float) -> None:
        train, val = self._recipe.train, self._data.val
        per_epoch, batch = self._start.steps_per_epoch, len(self._data.train) / self._start.steps_per_epoch
        images = 0 if val is None else len(val) / train.validate_every
        epoch = step * (per_epoch + images / batch / 3)
        left = epoch * (self._total - self._start.step) / per_epoch
        if left >= _SHORT or self._only:
            threads = f", {counted(torch.get_num_threads(), 'thread')}" if self._device == "cpu" else ""
            rest = "the training" if not self._start.step else "the rest of the training"
            self._say(
                f"an epoch of {counted(per_epoch, 'step')} takes about {duration(epoch)}, {rest} about "
                f"{duration(left)} ({batch / step:,.0f} images/s{threads})"
            )
            if left >= _LONG:
                self._say(f"shorter by: {'; '.join(suggestions(self._recipe, self._data, self._device))}")
        if self._only:
            raise Measured


def suggestions(recipe: Recipe, data: Data, device: str) -> list[str]:
    """What makes a training shorter, beside a smaller network."""
    found = []
    if recipe.train.precision == "32" and (ratio := slowdown("bf16", device)) < 0.8:
        found.append(f"train.precision=bf16 (a convolution takes {ratio:.1f} of the time here)")
    if min(data.size) >= _LARGE:
        height, width = (side // 2 for side in data.size)
        size = f"{height}" if height == width else f"{height}x{width}"
        found.append(f"data.image_size={size} (about a quarter of the time)")
    if recipe.train.epochs > 1:
        found.append(f"train.epochs={recipe.train.epochs // 2} (half)")
    return [*found, "smaller or fewer networks" + (", or a GPU" if device == "cpu" else "")]


def _wait(record: StepRecord) -> None:
    for values in record.terms.values():
        values.sum().item()
