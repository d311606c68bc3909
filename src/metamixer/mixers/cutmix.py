"""CutMix (Yun et al., ICCV 2019, arXiv 1905.04899), of any two images or of two images of one class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from metamixer.core.plan import MixPlan, Paste
from metamixer.core.ranges import Share
from metamixer.mixers.base import Draw, WindowedMixer
from metamixer.mixers.sampling import Alpha, Per, Strength, boxes, permutation, same_class_partners

Partners = Literal["same_class", "any"]


@dataclass(frozen=True)
class CutMix(WindowedMixer):
    """Pastes a box of another random image; labels are mixed by the pasted area.

    The box has as many dimensions as the input: a window of a signal, a rectangle of an image, a block of a volume.

    Args:
        alpha: parameter of Beta(alpha, alpha), the distribution of the area of the box. 1, as in the paper, makes all
            areas equally likely.
        probability: probability that a batch is mixed. The paper uses 0.5 on CIFAR and 1 on ImageNet.
        box: draw one box per ``batch`` (as in the authors' code; faster) or one per ``sample``.
        until: share of training after which mixing stops.
        ramp: share of training before ``until`` over which the probability falls to 0.
        strength: factor of the probability; ``auto`` starts at 0 and rises as the peers overfit.
    """

    alpha: Alpha = 1.0
    probability: Share = 0.5
    box: Per = "batch"
    until: Share = 1.0
    ramp: Share = 0.0
    strength: Strength = 1.0

    @cached_property
    def _pasting(self) -> SameClassCutMix:
        return SameClassCutMix(self.alpha, self.probability, self.box, "any", self.until, self.ramp, self.strength)

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        return self._pasting.draw(draw)


@dataclass(frozen=True)
class SameClassCutMix(WindowedMixer):
    """Pastes a box of another image of the same class; labels do not change.

    The local half of MetaMixer: the network has to recognise parts of two objects of one class. The partner of an image
    is its companion if the batch has companions (another training image of its class), otherwise another image of its
    class in the batch, or the image itself if there is no other.

    Args:
        alpha: parameter of Beta(alpha, alpha), the distribution of the area of the box.
        probability: probability that a batch is mixed. 0.5, as for CutMix on CIFAR.
        box: draw one box per ``batch`` or one per ``sample``.
        partners: ``same_class``, or ``any`` for plain CutMix, with labels mixed by the pasted area.
        until: share of training after which mixing stops.
        ramp: share of training before ``until`` over which the probability falls to 0.
        strength: factor of the probability; ``auto`` starts at 0 and rises as the peers overfit.
    """

    alpha: Alpha = 1.0
    probability: Share = 0.5
    box: Per = "batch"
    partners: Partners = "same_class"
    until: Share = 1.0
    ramp: Share = 0.0
    strength: Strength = 1.0

    @property
    def wants_companions(self) -> bool:  # type: ignore[override]  # a setting decides
        """Whether images from outside the batch are pasted."""
        return self.partners == "same_class" and self.probability > 0 and self.strength != 0

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        if not self.mixes(self.probability, draw):
            return MixPlan()
        size = draw.size
        low, high = boxes(self.alpha, size, None if self.box == "batch" else len(draw.images), draw.generator)
        if self.partners == "any":
            partner = permutation(len(draw.labels), draw.generator).to(draw.images.device)
        elif draw.companions is not None:
            return MixPlan((Paste(low, high, size, source=draw.companions),))
        else:
            partner = same_class_partners(draw.labels, draw.generator)
        return MixPlan((Paste(low, high, size, partner=partner),))
