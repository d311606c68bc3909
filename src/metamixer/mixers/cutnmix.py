"""Cut^nMix (Shen, Xu, Yang, Li, Guo, arXiv 2206.12370): CutMix with a different box for every peer.

We know only the abstract: "an even stronger MSR (mixed sample regularization) specifically for online distillation,
named as Cut^nMix". That n peers see n boxes of one pair of images, with one label, is our interpretation of the name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metamixer.core.plan import MixPlan, Paste, PerPeer
from metamixer.core.ranges import Count, Share
from metamixer.mixers.base import Draw, WindowedMixer
from metamixer.mixers.sampling import Alpha, Strength, beta, permutation


@dataclass(frozen=True)
class CutnMix(WindowedMixer):
    """Pastes a box of another random image, at a different position for each peer; labels are mixed by the pasted area.

    Our interpretation of the abstract of the paper. All peers have the same partners and boxes of the same size, so
    that one label holds for all of them and they can teach each other, while each sees other parts of the two images.
    So that the areas are equal, boxes are not clipped at the edges as in CutMix: each lies inside the image, at a
    uniformly drawn position. Large boxes are therefore more frequent than in CutMix, and pixels near the edges are
    pasted less often.

    Args:
        alpha: parameter of Beta(alpha, alpha), the distribution of the area of the box. 1, as in CutMix, makes all
            areas equally likely.
        probability: probability that a batch is mixed. 0.5, as CutMix on CIFAR.
        peers: number of boxes, one for each peer of the cohort; shadows use the boxes of their peers.
        until: share of training after which mixing stops.
        ramp: share of training before ``until`` over which the probability falls to 0.
        strength: factor of the probability; ``auto`` starts at 0 and rises as the peers overfit.
    """

    alpha: Alpha = 1.0
    probability: Share = 0.5
    peers: Count = 2
    until: Share = 1.0
    ramp: Share = 0.0
    strength: Strength = 1.0

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        if not self.mixes(self.probability, draw):
            return MixPlan()
        size = draw.size
        sides = self._sides(size, draw.generator)
        # Positions range from 0 to size - sides, both included.
        free = torch.tensor(size) - sides + 1
        place = torch.rand((self.peers, len(size)), generator=draw.generator, dtype=torch.float64)
        partner = permutation(len(draw.labels), draw.generator).to(draw.images.device)
        pastes = tuple(Paste(low, low + sides, size, partner=partner) for low in (place * free).long())
        return MixPlan((PerPeer(pastes),))

    def _sides(self, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """``(S,)`` int64: the sides of all boxes, ``size * (1 - lambda) ** (1 / S)``, rounded."""
        share = (1 - beta(self.alpha, None, generator)).pow(1 / len(size))
        return (torch.tensor(size) * share).round().long()
