"""MetaMixer (Wang, Xiao, Yamasaki, arXiv 2303.07951): mix locally inside a class, then globally between classes.

Local mixing (CutMix of two images of one class, at the input) teaches the peers low-level, localizable knowledge;
global mixing (manifold mixup of two classes, at a random stage) teaches high-level knowledge about the whole image.
Each mixed sample consists of four images of two classes.

We know only the abstract and Figure 1 of the paper. Distributions, probabilities and the set of stages are our
interpretation, and are settings.
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
    """Same-class CutMix at the input, then manifold mixup at a random stage.

    Args:
        local_alpha: parameter of Beta(alpha, alpha), the distribution of the area of the pasted box. 1, as in CutMix,
            makes all areas equally likely.
        local_probability: probability that a batch is mixed locally; 0 turns local mixing off. 0.5, as CutMix on CIFAR;
            with 1 our networks were less accurate after 200 epochs on 500 images (docs/results.md).
        partners: ``same_class`` (Figure 1), or ``any``; labels are then mixed by the pasted area as well.
        box: draw one box per ``batch`` or one per ``sample``.
        global_alpha: parameter of Beta(alpha, alpha), the distribution of the share that a sample keeps. 2, as in
            manifold mixup and in our long studies (docs/results.md); 1 makes all shares equally likely.
        global_probability: probability that a batch is mixed globally; 0 turns global mixing off.
        stages: stages of global mixing, chosen with equal probability: 0 is the images, ``k`` the output of stage k.
            None: "prior to any stage", that is the images and the outputs of all stages but the last.
        stage_draws: 1 draws one stage for all peers; P draws one stage for each of P peers. Lambda and partners are
            always shared, because peers that see different mixtures cannot teach each other.
        lam: draw one share per ``batch`` or one per ``sample``.
        until: share of training after which both halves stop.
        ramp: share of training before ``until`` over which both probabilities fall to 0.
        strength: factor of both probabilities; ``auto`` starts at 0 and rises as the peers overfit.
    """

    local_alpha: Alpha = 1.0
    local_probability: Share = 0.5
    partners: Partners = "same_class"
    box: Per = "batch"
    global_alpha: Alpha = 2.0
    global_probability: Share = 1.0
    stages: Stages | None = None
    stage_draws: Count = 1
    lam: Per = "batch"
    until: Share = 1.0
    ramp: Share = 0.0
    strength: Strength = 1.0

    @property
    def wants_companions(self) -> bool:  # type: ignore[override]  # a setting decides
        """Whether images from outside the batch are pasted."""
        return self.local_half.wants_companions

    @cached_property
    def local_half(self) -> SameClassCutMix:
        """The local half: mixing at the input, inside a class."""
        window = (self.until, self.ramp, self.strength)
        return SameClassCutMix(self.local_alpha, self.local_probability, self.box, self.partners, *window)

    @cached_property
    def global_half(self) -> ManifoldMixup:
        """The global half: mixing at a random stage, between classes."""
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
