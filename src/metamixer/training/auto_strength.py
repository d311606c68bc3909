"""Strength of mixing that follows how much the peers overfit, as adaptive discriminator augmentation does for GANs
(Karras, Aittala, Hellsten, Laine, Lehtinen, Aila, NeurIPS 2020, arXiv 2006.06676, Sec. 3).

After each validation the peers also name the classes of a fixed set of training images, neither mixed nor augmented.

    r = (a_train - a_val) / (1 - a_val)
    e² = (a_train (1 - a_train) / n_train + (1 - r)² a_val (1 - a_val) / n_val) / (1 - a_val)²
    s <- min(1, max(0, s + d)) where r - target t > e,    min(1, max(0, s - d)) where r - target t < -e

with a the mean accuracy of the peers that learn, of n images each, t the share of the training that is done, and e the
standard error of r by its first derivatives. r is 0 while training images are no better known than others, and 1 when
all of them are known. Without mixing it grows about in proportion to t, so r / t is the overfitting to expect in the
end. With a constant bound on r long trainings would begin to mix late, and short ones end with it; without e few
validation images would make every training mix by chance. s begins with 0, and d is such that it can rise to 1 in the
share ``rise`` of the training.
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
"""Validations of a training, of which at least so many are needed unless every epoch ends with one."""


def is_auto(mixer: Mixer) -> bool:
    """Whether the strength of a mixer is to follow the training."""
    return getattr(mixer, "strength", None) == "auto"


def overfitting(train: float, val: float) -> float:
    """r: of what the peers get wrong among new images, the share that they know among training images.

    >>> overfitting(1.0, 0.5), overfitting(0.75, 0.5), overfitting(0.5, 0.5)
    (1.0, 0.5, 0.0)
    """
    return (train - val) / (1 - val) if val < 1 else 0.0


def uncertainty(train: float, val: float, images: tuple[int, int]) -> float:
    """e: the standard error of r for so many training and validation images."""
    if val == 1:
        return 0.0
    variances = (train * (1 - train) / images[0], ((1 - train) / (1 - val)) ** 2 * val * (1 - val) / images[1])
    return math.sqrt(sum(variances)) / (1 - val)


class AutoStrength:
    """The strength of one training.

    Args:
        settings: ``strength_target``, ``strength_rise``, and how often the training is validated.
        plain: batches of the fixed training images.

    Raises:
        ValueError: it is validated too seldom.
    """

    def __init__(self, settings: TrainSettings, plain: Iterable[Any] = ()) -> None:
        epochs, every = settings.epochs, settings.validate_every
        if every > 1 and epochs // every < FEWEST:
            accepted = max(1, epochs // FEWEST)
            raise ValueError(
                f"validate_every={every}: a mixer with strength=auto needs at least {FEWEST} validations, {epochs} "
                f"epochs have {epochs // every}; accepted: validate_every={accepted}{' or less' * (accepted > 1)}"
            )
        self.target = settings.strength_target
        self.step = min(1.0, every / (settings.strength_rise * epochs))
        self.plain, self.value = plain, 0.0

    def follow(
        self, evaluate: Callable[[Iterable[Any]], Report], val: Report | None, peers: Sequence[int], done: float
    ) -> tuple[float, float | None]:
        """Move the strength by a step.

        Args:
            evaluate: gives the metrics of all peers on batches.
            val: their metrics on the validation images; None: this epoch was not validated, and nothing moves.
            peers: those that learn.
            done: the share of the training.

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
            self.value = min(1.0, max(0.0, self.value + math.copysign(self.step, over)))
        return before, found
