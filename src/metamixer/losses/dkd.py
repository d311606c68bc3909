"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv 2203.08679).

KL(p_t || p_s) = TCKD + (1 - p_t[target]) NCKD: a term for the probability of the target class, and one for the
distribution over the other classes. If the teacher is confident, the second has almost no weight; DKD gives it a weight
that does not depend on the confidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metamixer.core.ranges import Positive, Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import divergence, learning, linear_ramp, single, soft_cross_entropy
from metamixer.losses.kd import mean_teacher


@dataclass(eq=False, repr=False)
class DKD(Loss):
    """Peers learn from a frozen teacher, with separate terms for the target and the other classes.

    ``L_i = CE(z_i, y) + w (alpha T^2 TCKD + beta T^2 NCKD)``.

    TCKD is the KL divergence of (p[target], 1 - p[target]), NCKD that of the softmaxes over the other classes. The
    teachers are the frozen peers of the cohort; the mean of their softened probabilities teaches.

    In the paper every sample has one label. With the soft targets of a mixer, the target class is the first one with
    the largest share (our generalisation).

    Args:
        temperature: T of all softmaxes. 4, as in the official code.
        alpha: weight of the target class (TCKD).
        beta: weight of the other classes (NCKD). 8 is the default of the official code, which tunes it for each pair of
            networks: 2 for ResNet-56 and ResNet-20, 6 for WRN-40-2 and WRN-16-2.
        warm_up: share of training over which w rises linearly from 0 to 1: 20 of 240 epochs in the official code.

    >>> outputs = Outputs(torch.zeros(2, 4, 10), frozen=(1,))
    >>> sorted(DKD()(outputs, torch.eye(10)[:4]))
    ['distill_others', 'distill_target', 'task']
    """

    needs = ("teacher",)

    temperature: Positive = 4.0
    alpha: Weight = 1.0
    beta: Weight = 8.0
    warm_up: Share = 0.0833

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task", "distill_target", "distill_others"}``, each ``(P,)``.

        Raises:
            ValueError: no peer is frozen.
        """
        teacher = mean_teacher(outputs, self.temperature, "DKD")
        students = learning(outputs.logits, outputs)
        teacher_two, teacher_others = _decouple(teacher[None], targets, self.temperature)
        student_two, student_others = _decouple(students, targets, self.temperature)
        weight = linear_ramp(progress, self.warm_up)
        target = self.alpha * divergence(teacher_two, student_two, self.temperature)
        others = self.beta * divergence(teacher_others, student_others, self.temperature)
        return {
            "task": soft_cross_entropy(students, targets),
            "distill_target": weight * target,
            "distill_others": weight * others,
        }


def _decouple(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """``(P, B, C)`` -> ``(P, B, 2)`` logits of the target class and of all others, ``(P, B, C - 1)`` of the others.

    The column of the target is removed by its index. Subtracting a large number from it, as in the official code, fails
    if a network is very confident, and masking with -inf gives NaN gradients.
    """
    logits = single(logits)
    label = targets.argmax(-1, keepdim=True)
    column = torch.arange(logits.shape[-1] - 1, device=logits.device)
    place = (column + (column >= label)).expand(len(logits), -1, -1)
    others = logits.gather(-1, place)
    target = logits.gather(-1, label.expand(len(logits), -1, -1)).squeeze(-1)
    rest = temperature * (others / temperature).logsumexp(-1)
    return torch.stack((target, rest), -1), others
