"""The time of training, estimated from its first steps."""

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

_STEPS, _SECONDS, _MOST = 4, 2.0, 10.0  # measure at least 4 steps and 2 seconds, but not longer than 10 seconds
_SHORT, _LONG = 60.0, 3600.0  # shorter runs are not reported; longer ones get suggestions
_LARGE = 96  # pixels; images of half this size still show objects


class Measured(Exception):
    """Raised when the cost is known, if nothing else was requested."""


class TrainingCost:
    """A callback that times the first steps, and then reports once the time of an epoch and of training.

    The first step is left out because it is slower. Validation is assumed to take a third of the time of training for
    the same number of images.

    Args:
        recipe: recipe of the run.
        data: data of the run.
        say: prints a line.
        device: type of the device.
        only: stop after the report by raising :class:`Measured`.
        clock: returns seconds.
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
        """Store the number of steps."""
        self._start, self._total = start, start.epochs * start.steps_per_epoch
        self._done = start.step >= self._total

    def on_step(self, record: StepRecord) -> None:
        """Measure the time of a step."""
        if self._done:
            return
        self._steps += 1
        last = record.step == self._total
        if self._steps > 1:
            taken = self._clock() - self._began
            enough = self._steps > _STEPS and taken >= _SECONDS
            if not (enough or taken >= _MOST or last):
                return
        _wait(record)  # a GPU may lag behind
        if self._steps == 1 and not last:
            self._began = self._clock()
            return
        self._done = True
        self._tell((self._clock() - self._began) / (self._steps - 1) if self._steps > 1 else record.seconds)

    def on_epoch(self, record: EpochRecord) -> None:
        """Restart the measurement, because it must not include validation."""
        self._steps = 0

    def on_end(self) -> None:
        """Nothing to do."""

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
    """Suggestions that make training shorter."""
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
