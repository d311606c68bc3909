"""Knowledge distillation (Hinton, Vinyals, Dean, arXiv 1503.02531) from a pretrained teacher.

The classic method, for comparison with online distillation, and for cases in which a teacher is available anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metamixer.core.ranges import Positive, Share
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import divergence, learning, single, soft_cross_entropy


@dataclass(eq=False, repr=False)
class KD(Loss):
    """Peers learn from the labels and from the soft predictions of a frozen teacher.

    ``L_i = (1 - a) CE(z_i, y) + a T^2 KL(p_t || p_i)``.

    The teachers are the frozen peers of the cohort; p_t is the mean of their softened probabilities. The other peers
    learn from the teachers only and not from each other, so training two of them equals two runs of KD.

    Args:
        temperature: T of both softmaxes. 4, as in common benchmarks (mdistiller, RepDistiller).
        alpha: a, the weight of the distillation; the labels have the weight 1 - a. 0.9, as in these benchmarks; the
            paper gives no value.

    >>> KD()(Outputs(torch.zeros(2, 4, 10), frozen=(1,)), torch.eye(10)[:4])
    {'task': tensor([0.2303, 0.0000]), 'distill': tensor([0., 0.])}
    """

    needs = ("teacher",)

    temperature: Positive = 4.0
    alpha: Share = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        self.task_weight = 1 - self.alpha

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats.

        Raises:
            ValueError: no peer is frozen.
        """
        teacher = mean_teacher(outputs, self.temperature, "KD")
        students = learning(outputs.logits, outputs)
        return {
            "task": self.task_weight * soft_cross_entropy(students, targets),
            "distill": self.alpha * divergence(teacher, students, self.temperature),
        }


def mean_teacher(outputs: Outputs, temperature: float, method: str) -> Tensor:
    """``(B, C)`` detached logits whose softmax at ``temperature`` is the mean of those of the frozen peers.

    Raises:
        ValueError: there are no frozen peers other than shadows.
    """
    teachers = [index for index in outputs.frozen if index < outputs.peers - outputs.shadows]
    if not teachers:
        raise ValueError(
            f"{method} learns from a frozen teacher, and all {outputs.peers} peers learn: in a recipe "
            "peers.1.frozen=true peers.1.weights=teacher.safetensors, in code Cohort(networks, frozen=[1])"
        )
    logits = torch.stack([outputs.logits[index] for index in teachers]).detach()
    return logits[0] if len(teachers) == 1 else softened_mean(logits, temperature)


def softened_mean(logits: Tensor, temperature: float) -> Tensor:
    """``(N, B, C)`` -> ``(B, C)``: logits whose softmax at ``temperature`` is the mean of the N softmaxes at it."""
    logits = single(logits)
    # Not divided by N: a constant added to all logits does not change a softmax.
    return temperature * (logits / temperature).log_softmax(-1).logsumexp(0)
