"""Manifold mixup (Verma et al., ICML 2019, arXiv 1806.05236): mixup of the output of a random stage of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from metamixer.core.plan import Blend, MixPlan, Stage
from metamixer.core.ranges import Count, Share
from metamixer.mixers.base import Draw, WindowedMixer
from metamixer.mixers.sampling import Alpha, Per, Strength, beta, permutation

Stages = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class ManifoldMixup(WindowedMixer):
    """Blends each sample with another random one at a random stage, and their labels in the same proportion.

    Args:
        alpha: parameter of Beta(alpha, alpha), the distribution of the share. 2, as in the authors' code for CIFAR.
        probability: probability that a batch is mixed.
        stages: stages to choose from with equal probability: 0 is the images, ``k`` the output of stage k. None: the
            images and the outputs of all stages but the last, for any network.
        stage_draws: 1 draws one stage for all peers; P draws one stage for each of P peers, with the same mixture.
        lam: draw one share per ``batch`` or one per ``sample``.
        until: share of training after which mixing stops.
        ramp: share of training before ``until`` over which the probability falls to 0.
        strength: factor of the probability; ``auto`` starts at 0 and rises as the peers overfit.
    """

    alpha: Alpha = 2.0
    probability: Share = 1.0
    stages: Stages | None = None
    stage_draws: Count = 1
    lam: Per = "batch"
    until: Share = 1.0
    ramp: Share = 0.0
    strength: Strength = 1.0

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        if not self.mixes(self.probability, draw):
            return MixPlan()
        stages = tuple(self._stage(draw.generator) for _ in range(self.stage_draws))
        lam = beta(self.alpha, None if self.lam == "batch" else len(draw.labels), draw.generator)
        partner = permutation(len(draw.labels), draw.generator)
        device = draw.images.device
        stage = stages[0] if self.stage_draws == 1 else stages
        return MixPlan((Blend(lam.float().to(device), partner.to(device), stage),))

    def _stage(self, generator: torch.Generator | None) -> Stage:
        depth = float(torch.rand((), generator=generator, dtype=torch.float64))
        return depth if self.stages is None else self.stages[int(depth * len(self.stages))]
