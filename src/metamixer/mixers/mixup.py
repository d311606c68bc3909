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
    """Blends each image with another random one, and their labels in the same proportion.

    Args:
        alpha: parameter of Beta(alpha, alpha), the distribution of the share. 1, as in the authors' code for CIFAR,
            makes all shares equally likely.
        probability: probability that a batch is mixed.
        lam: draw one share per ``batch`` (as in the authors' code) or one per ``sample``.
        until: share of training after which mixing stops.
        ramp: share of training before ``until`` over which the probability falls to 0.
        strength: factor of the probability; ``auto`` starts at 0 and rises as the peers overfit.
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
