"""MetaMixer (Wang, Xiao, Yamasaki, arXiv 2303.07951): mix locally inside a class, then globally between classes.

Local mixing (CutMix of two images of one class, before the input) teaches the peers low-level, localizable
knowledge; global mixing (manifold mixup of two classes, at a random stage) teaches high-level knowledge about the
whole image. Each mixed sample holds four images of two classes.

The abstract and Figure 1 are what we know of the paper. Distributions, probabilities and the set of stages are our
reading, and options.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from metamixer.core.plan import MixPlan
from metamixer.core.ranges import Count, Share
from metamixer.mixers.base import Draw, WindowedMixer
from metamixer.mixers.cutmix import Partners, SameClassCutMix
from metamixer.mixers.manifold_mixup import ManifoldMixup, Stages
from metamixer.mixers.sampling import Alpha, Per, Strength


@dataclass(frozen=True)
class MetaMixer(WindowedMixer):
    """Same-class CutMix at the input, then manifold mixup at a random stage: two plans, joined.

    Args:
        local_alpha: of Beta(alpha, alpha), the share of the pasted box. 1: every area is equally likely (CutMix).
        local_probability: that a batch is mixed locally; 0 leaves the global half alone. 0.5, as CutMix on CIFAR: with
            1 our networks were worse in 200 epochs of 500 images (docs/results.md).
        partners: ``same_class`` (Figure 1), or ``any``: the labels then mix by the pasted area as well.
        box: one box for the ``batch`` or one for each ``sample``.
        global_alpha: of Beta(alpha, alpha), the share that a sample keeps. 1: every share is equally likely.
        global_probability: that a batch is mixed globally; 0 leaves the local half alone.
        stages: where global mixing may happen, all equally likely: 0 is the images, ``k`` the end of stage k. None:
            "prior to any stage", the images and every stage boundary before the last stage's end.
        stage_draws: 1: one stage for all peers. P: one for each of P peers; lambda and partners stay shared, because
            peers that see different mixtures have nothing to teach each other.
        lam: one share for the ``batch`` or one for each ``sample``.
        until: the share of training after which both halves stop.
        ramp: the share of training before ``until`` over which both probabilities fall to 0.
        strength: scales both probabilities; ``auto``: as much as the peers overfit, from 0 on.
    """

    local_alpha: Alpha = 1.0
    local_probability: Share = 0.5
    partners: Partners = "same_class"
    box: Per = "batch"
    global_alpha: Alpha = 1.0
    global_probability: Share = 1.0
    stages: Stages | None = None
    stage_draws: Count = 1
    lam: Per = "batch"
    until: Share = 1.0
    ramp: Share = 0.0
    strength: Strength = 1.0

    @property
    def wants_companions(self) -> bool:  # type: ignore[override]  # a setting decides
        """Whether images from outside of the batch would be pasted."""
        return self.local_half.wants_companions

    @cached_property
    def local_half(self) -> SameClassCutMix:
        """What happens at the input, inside a class."""
        window = (self.until, self.ramp, self.strength)
        return SameClassCutMix(self.local_alpha, self.local_probability, self.box, self.partners, *window)

    @cached_property
    def global_half(self) -> ManifoldMixup:
        """What happens at a random stage, between classes."""
        return ManifoldMixup(
            alpha=self.global_alpha,
            probability=self.global_probability,
            stages=self.stages,
            stage_draws=self.stage_draws,
            lam=self.lam,
            until=self.until,
            ramp=self.ramp,
            strength=self.strength,
        )

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        return self.local_half.draw(draw) + self.global_half.draw(draw)
