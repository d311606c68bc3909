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
        weight: w, the weight of the distillation.
        ramp_up: share of training over which r rises (80 of 300 epochs, as in ONE, OKDDip and FFL).
    """

    temperature: Positive = 3.0
    weight: Weight = 1.0
    ramp_up: Share = 80 / 300


@dataclass(eq=False, repr=False)
class InformationSettings:
    """The mutual information of the features of two peers.

    Args:
        estimator: estimator of the mutual information: ``infonce``, ``vid`` or ``jsd``.
        information_weight: alpha (0.1, as in MCL for contrast with hard labels; VID on its own uses 1).
        tau: temperature of the critic (0.1).
        mask_same_class: leave out negatives of the same class; soft targets are weighted by the probability that the
            classes differ (ours).
    """

    estimator: Estimator = "infonce"
    information_weight: Weight = 0.1
    tau: Positive = 0.1
    mask_same_class: bool = False


@dataclass(eq=False, repr=False)
class AdversarySettings:
    """The adversary, and the weight of its term.

    Args:
        mode: mode of the adversary: ``features``, ``inputs`` or ``none``.
        adversarial_weight: beta; None: 0.05 in ``features``, 1 in ``inputs`` (ours; RSLAD weights its terms 5/6 and
            1/6).
        discriminator: weight of the loss of the discriminators: how fast they learn compared with the networks (as in
            AFD).
        adversarial_start: share of training before which beta is 0 in ``features``; after that it rises as r does
            (ours). In ``inputs`` beta is constant.
        balance: multiply alpha and beta by ``|dCE/dF_i| / |dL/dF_i|``, with running means over about 10 steps and F_i
            the last stage, and limit the product to 1 (ours). This costs three more backward passes of each peer, from
            the losses to its last stage only. Not for ``inputs``.
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
        eps: largest change of a pixel in [0, 1] (8/255).
        step: size of each step of PGD (2/255).
        steps: 1 is FGSM; more is PGD, with a forward and a backward pass per step. Use 10 for robust networks.
        mean: mean of each channel that the images were normalised with; runs of recipes set it by :meth:`set_pixels`.
        std: standard deviation of each channel, likewise.
    """

    eps: Positive = 8 / 255
    step: Positive = 2 / 255
    steps: Count = 1
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(eq=False, repr=False)
class NoiseSettings:
    """Two settings against wrong labels.

    Args:
        noise_rate: share of wrong labels. CE then uses only the share 1 - rate of the samples with the smallest loss,
            chosen by each peer for itself; co-teaching, the source of this rule, exchanges the choices.
        noise_ramp: share of training over which the share falls from 1 to 1 - rate (10 of 200 epochs in co-teaching).
        confidence: a teacher counts in KL, information and ``inputs`` only if its largest probability is above this.
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
        """``(P, B, C) -> (P, B)``: 1 if a teacher counts for a sample, else 0."""
        largest: Tensor = single(logits.detach()).softmax(-1).amax(-1)
        return (largest > self.confidence).to(largest.dtype)
