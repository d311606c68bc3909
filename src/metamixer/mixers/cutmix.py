"""CutMix (Yun et al., ICCV 2019, arXiv 1905.04899), between any two images and between two images of one class."""

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
    """Pastes a box of a random other image; the labels mix by the pasted area.

    The box has as many sides as the input has spatial axes: a window of a signal, a rectangle, a block of a volume.

    Args:
        alpha: of Beta(alpha, alpha), the share of the box. 1 as in the paper: every area is equally likely.
        probability: that a batch is mixed. The paper has 0.5 on CIFAR and 1 on ImageNet.
        box: one box for the ``batch`` (the authors' code, and the fast one) or one for each ``sample``.
        until: the share of training after which mixing stops.
        ramp: the share of training before ``until`` over which the probability falls to 0.
        strength: scales the probability; ``auto``: as much as the peers overfit, from 0 on.
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
    """Pastes a box of another image of the same class, so that the label stays what it is.

    The local half of MetaMixer: the network has to find the object in two places at once, with no doubt about what
    it is. Each image's partner is its companion where the batch has them (another training image of its class),
    otherwise another one of its class in the batch, and itself where it is alone.

    Args:
        alpha: of Beta(alpha, alpha), the share of the box.
        probability: that a batch is mixed. 0.5, as for CutMix on CIFAR.
        box: one box for the ``batch`` or one for each ``sample``.
        partners: ``same_class``, or ``any``: then it is plain CutMix and the labels mix by the pasted area.
        until: the share of training after which mixing stops.
        ramp: the share of training before ``until`` over which the probability falls to 0.
        strength: scales the probability; ``auto``: as much as the peers overfit, from 0 on.
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
        """Whether images from outside of the batch would be pasted."""
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
