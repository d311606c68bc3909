"""Cut^nMix (Shen, Xu, Yang, Li, Guo, arXiv 2206.12370): CutMix where every peer has a box of its own.

We know the abstract: "an even stronger MSR (mixed sample regularization) specifically for online distillation, named
as Cut^nMix". That n peers see n boxes of one pair of images, with one label, is our reading of the name.
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
    """Pastes a box of a random other image, for each peer at a place of its own; the labels mix by the pasted area.

    Our reading of the paper's abstract. All peers have the same partners and boxes of the same size, so that one label
    holds for all of them and they can teach each other, while each has to recognise other parts of the two images. For
    the areas to agree exactly the boxes are not cut off at the edges, as CutMix's are: each lies inside, all such
    places being equally likely. Large boxes are therefore more frequent than in CutMix, and parts near the edges rarer.

    Args:
        alpha: of Beta(alpha, alpha), the share of the box. 1 as in CutMix: every area is equally likely.
        probability: that a batch is mixed. 0.5, as CutMix on CIFAR.
        peers: how many boxes, one for each peer of the cohort; its shadows have those of their peers.
        until: the share of training after which mixing stops.
        ramp: the share of training before ``until`` over which the probability falls to 0.
        strength: scales the probability; ``auto``: as much as the peers overfit, from 0 on.
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
        # From 0 to size - sides, both included.
        free = torch.tensor(size) - sides + 1
        place = torch.rand((self.peers, len(size)), generator=draw.generator, dtype=torch.float64)
        partner = permutation(len(draw.labels), draw.generator).to(draw.images.device)
        pastes = tuple(Paste(low, low + sides, size, partner=partner) for low in (place * free).long())
        return MixPlan((PerPeer(pastes),))

    def _sides(self, size: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """``(S,)`` int64: the sides of all boxes, ``size * (1 - lambda) ** (1 / S)``, rounded."""
        share = (1 - beta(self.alpha, None, generator)).pow(1 / len(size))
        return (torch.tensor(size) * share).round().long()
