"""The settings of :class:`~metamixer.losses.InfoMaxAdversarial`, grouped by its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from metamixer.core.ranges import Count, Positive, Share, Weight
from metamixer.losses.components.pairs import smallest_mean
from metamixer.losses.functional import linear_ramp, single, soft_cross_entropy

Estimator = Literal["infonce", "vid", "jsd"]
Mode = Literal["features", "inputs", "none"]


@dataclass(eq=False, repr=False)
class DistillationSettings:
    """Mutual distillation.

    Args:
        temperature: T (3, as in ONE, OKDDip and MCL).
        weight: w, of the distillation.
        ramp_up: the share of training over which r rises (80 of 300 epochs, as in ONE, OKDDip and FFL).
    """

    temperature: Positive = 3.0
    weight: Weight = 1.0
    ramp_up: Share = 80 / 300


@dataclass(eq=False, repr=False)
class InformationSettings:
    """The mutual information of the peers' features.

    Args:
        estimator: of the mutual information: ``infonce``, ``vid`` or ``jsd``.
        information_weight: alpha (0.1, as MCL's for contrast with hard labels; VID alone has 1).
        tau: temperature of the critic (0.1).
        mask_same_class: leave out negatives of the same class; with soft targets by the probability of it (ours).
    """

    estimator: Estimator = "infonce"
    information_weight: Weight = 0.1
    tau: Positive = 0.1
    mask_same_class: bool = False


@dataclass(eq=False, repr=False)
class AdversarySettings:
    """The adversary, and how its term is weighed.

    Args:
        mode: of the adversary: ``features``, ``inputs`` or ``none``.
        adversarial_weight: beta; None: 0.05 in ``features``, 1 in ``inputs`` (ours; RSLAD has 5/6 beside 1/6).
        discriminator: weight of what the discriminators minimise: how fast they learn beside the networks (as in AFD).
        adversarial_start: the share of training before which beta is 0 in ``features``; from there it rises as r does
            (ours). ``inputs`` has all of beta from the start.
        balance: multiply alpha and beta by ``|dCE/dF_i| / |dL/dF_i|``, running means over some 10 steps, F_i the last
            stage, and limit the product to 1 (ours). Three more backward passes of each peer, from the losses down
            to its last stage only. Not for ``inputs``.
    """

    mode: Mode = "features"
    adversarial_weight: Weight | None = None
    discriminator: Weight = 0.01
    adversarial_start: Share = 0.1
    balance: bool = False


@dataclass(eq=False, repr=False)
class AttackSettings:
    """The attack in mode ``inputs``.

    Args:
        eps: the largest change of a pixel, of 1 (8/255).
        step: of each step of PGD (2/255).
        steps: 1: FGSM; more: PGD, each with a pass forward and back. 10 for networks that are to be robust.
        mean: of the normalised images' channels, for ``inputs``; :meth:`set_pixels` takes its place in a recipe's run.
        std: likewise.
    """

    eps: Positive = 8 / 255
    step: Positive = 2 / 255
    steps: Count = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(eq=False, repr=False)
class NoiseSettings:
    """Two gates against wrong labels.

    Args:
        noise_rate: the share of wrong labels: CE then counts the 1 - rate of the samples whose loss is least, for each
            peer its own; co-teaching, where this is from, exchanges them.
        noise_ramp: the share of training over which 1 falls to 1 - rate (10 of 200 epochs in co-teaching).
        confidence: a teacher counts for KL, information and ``inputs`` only where its largest probability is above.
    """

    noise_rate: Share = 0.0
    noise_ramp: Share = 0.05
    confidence: Share = 0.0

    def task(self, logits: Tensor, targets: Tensor, progress: float | Tensor | None) -> Tensor:
        """``(L, B, C), (B, C) -> (L,)``: the cross-entropy of the samples that count."""
        if self.noise_rate == 0:
            return soft_cross_entropy(logits, targets)
        each = soft_cross_entropy(logits[:, :, None], targets[:, None])  # (L, B)
        return smallest_mean(each, 1 - self.noise_rate * linear_ramp(progress, self.noise_ramp))

    def trusted(self, logits: Tensor) -> Tensor:
        """``(P, B, C) -> (P, B)``: 1 where a teacher counts, else 0."""
        largest: Tensor = single(logits.detach()).softmax(-1).amax(-1)
        return (largest > self.confidence).to(largest.dtype)
