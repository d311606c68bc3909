"""mixup (Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018, arXiv 1710.09412): convex combinations of images and labels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from metamixer.core.plan import MixPlan
from metamixer.core.ranges import Share
from metamixer.mixers.base import Draw, WindowedMixer
from metamixer.mixers.manifold_mixup import ManifoldMixup
from metamixer.mixers.sampling import Alpha, Per, Strength


@dataclass(frozen=True)
class Mixup(WindowedMixer):
    """Blends each image with a random other one, and their labels by the same share.

    Args:
        alpha: of Beta(alpha, alpha). 1 as in the authors' CIFAR code: every share is equally likely.
        probability: that a batch is mixed.
        lam: one share for the ``batch`` (the authors' code) or one for each ``sample``.
        until: the share of training after which mixing stops.
        ramp: the share of training before ``until`` over which the probability falls to 0.
        strength: scales the probability; ``auto``: as much as the peers overfit, from 0 on.
    """

    alpha: Alpha = 1.0
    probability: Share = 1.0
    lam: Per = "batch"
    until: Share = 1.0
    ramp: Share = 0.0
    strength: Strength = 1.0

    @cached_property
    def _manifold(self) -> ManifoldMixup:
        return ManifoldMixup(
            self.alpha, self.probability, (0,), 1, self.lam, until=self.until, ramp=self.ramp, strength=self.strength
        )

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        return self._manifold.draw(draw)
