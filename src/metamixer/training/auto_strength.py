"""Adapt the strength of mixing to how much the peers overfit, as adaptive discriminator augmentation does for GANs
(Karras, Aittala, Hellsten, Laine, Lehtinen, Aila, NeurIPS 2020, arXiv 2006.06676, Sec. 3).

After each validation the peers are also evaluated on a fixed set of training images, neither mixed nor augmented.

    r = (a_train - a_val) / (1 - a_val)
    e² = (a_train (1 - a_train) / n_train + (1 - r)² a_val (1 - a_val) / n_val) / (1 - a_val)²
    s <- min(b, max(0, s + d)) if r - target t > e,    min(b, max(0, s - d)) if r - target t < -e
    b = min(1, max(0, (3 epochs / strength_epochs - 1) / 2))

where a is the mean accuracy on n images of the peers that learn, t the share of training that is done, and e the
standard error of r (by error propagation). r is 0 if training images are classified no better than new ones, and 1 if
all of them are classified correctly. Without mixing it grows roughly in proportion to t, so r / t predicts the
overfitting at the end. With a constant bound on r, long runs would start mixing late, and short ones at their end.
Without e, runs with few validation images would mix by chance. s starts at 0, and d is chosen such that s can rise to 1
in the share ``rise`` of training. The bound b keeps short runs from mixing: mixing slows learning down, and a short run
can overfit from its first epochs on and still lose accuracy by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from metamixer.core.plan import Mixer
from metamixer.evaluation.report import Report
from metamixer.training.settings import TrainSettings

FEWEST = 10
"""The smallest number of validations in a run, unless every epoch ends with one."""


def is_auto(mixer: Mixer) -> bool:
    """Whether the strength of a mixer is ``auto``."""
    return getattr(mixer, "strength", None) == "auto"


def overfitting(train: float, val: float) -> float:
    """r: the gap between training and validation accuracy, relative to the validation error.

    >>> overfitting(1.0, 0.5), overfitting(0.75, 0.5), overfitting(0.5, 0.5)
    (1.0, 0.5, 0.0)
    """
    return (train - val) / (1 - val) if val < 1 else 0.0


def uncertainty(train: float, val: float, images: tuple[int, int]) -> float:
    """e: the standard error of r, for ``images`` training and validation images."""
    if val == 1:
        return 0.0
    variances = (train * (1 - train) / images[0], ((1 - train) / (1 - val)) ** 2 * val * (1 - val) / images[1])
    return math.sqrt(sum(variances)) / (1 - val)


def bound(settings: TrainSettings) -> float:
    """b: the highest strength in a run of that many epochs.

    >>> [bound(TrainSettings(epochs=epochs)) for epochs in (25, 50, 75, 100, 150, 400)]
    [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    """
    return min(1.0, max(0.0, (3 * settings.epochs / settings.strength_epochs - 1) / 2))


class AutoStrength:
    """The strength of mixing in one run.

    Args:
        settings: ``epochs``, ``validate_every``, ``strength_target``, ``strength_rise`` and ``strength_epochs``.
        plain: batches of the fixed training images.

    Raises:
        ValueError: there are too few validations.
    """

    def __init__(self, settings: TrainSettings, plain: Iterable[Any] = ()) -> None:
        epochs, every = settings.epochs, settings.validate_every
        if every > 1 and epochs // every < FEWEST:
            accepted = max(1, epochs // FEWEST)
            raise ValueError(
                f"validate_every={every}: a mixer with strength=auto needs at least {FEWEST} validations, {epochs} "
                f"epochs have {epochs // every}; accepted: validate_every={accepted}{' or less' * (accepted > 1)}"
            )
        self.target, self.bound = settings.strength_target, bound(settings)
        self.step = min(1.0, every / (settings.strength_rise * epochs))
        self.plain, self.value = plain, 0.0

    def follow(
        self, evaluate: Callable[[Iterable[Any]], Report], val: Report | None, peers: Sequence[int], done: float
    ) -> tuple[float, float | None]:
        """Adapt the strength after an epoch.

        Args:
            evaluate: evaluates all peers on batches.
            val: metrics on the validation images; None: there was no validation, and the strength does not change.
            peers: the peers that learn.
            done: the share of training that is done.

        Returns:
            The strength in this epoch, and r.
        """
        before = self.value
        if val is None:
            return before, None
        train = evaluate(self.plain)
        known, new = (fmean(report.peers[peer].accuracy for peer in peers) for report in (train, val))
        found = overfitting(known, new)
        over, error = found - self.target * done, uncertainty(known, new, (train.images, val.images))
        if abs(over) > error:
            self.value = min(self.bound, max(0.0, self.value + math.copysign(self.step, over)))
        return before, found
