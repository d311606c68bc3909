"""Manifold mixup (Verma et al., ICML 2019, arXiv 1806.05236): mixup of what a random stage of the network puts out."""

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
    """Blends each sample with a random other one at a random stage, and their labels by the same share.

    Args:
        alpha: of Beta(alpha, alpha). 2, the authors' setting for CIFAR.
        probability: that a batch is mixed.
        stages: where it may happen, all equally likely: 0 is the images, ``k`` the end of stage k. None: the images
            and every stage boundary before the last stage's end, whatever networks come.
        stage_draws: 1: one stage for all peers. P: one stage for each of P peers; they still see the same mixture.
        lam: one share for the ``batch`` or one for each ``sample``.
        until: the share of training after which mixing stops.
        ramp: the share of training before ``until`` over which the probability falls to 0.
        strength: scales the probability; ``auto``: as much as the peers overfit, from 0 on.
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
