"""Functions shared by losses: soft cross-entropy and divergences between peers, one number per peer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamixer.core.labels import check_distribution
from metamixer.core.types import Outputs, pooled

_CLASS_WEIGHTS: ContextVar[Tensor | None] = ContextVar("class_weights", default=None)


@contextmanager
def weighing(weights: Tensor | None) -> Iterator[None]:
    """Weights of the classes ``(C,)`` in every :func:`soft_cross_entropy` meanwhile; None: all count alike.

    A context and no argument, so that it reaches the cross-entropies of every method, those of ensembles included.
    """
    token = _CLASS_WEIGHTS.set(weights)
    try:
        yield
    finally:
        _CLASS_WEIGHTS.reset(token)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``(P, B, C), (B, C) -> (P,)``: -sum_c t_c log p_c in nats, the mean over the batch.

    Inside of :func:`weighing` -sum_c w_c t_c log p_c, as ``torch.nn.functional.cross_entropy`` has it.
    """
    if (weights := _CLASS_WEIGHTS.get()) is not None:
        targets = targets * weights.to(targets)
    return -(targets * single(logits).log_softmax(-1)).sum(-1).mean(-1)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``(..., B, C), (..., B, C) -> (...)``: T^2 KL(softmax(teacher / T) || softmax(student / T)) in nats.

    The sum over the classes, the mean over the batch. A mean over the classes as well, which
    ``reduction="mean"`` of ``KLDivLoss`` takes, is too weak by the number of classes. T^2 keeps the size of the
    gradient when T changes (Hinton, Vinyals, Dean, arXiv 1503.02531).

    No gradient flows into the teacher.
    """
    return temperature**2 * softened_kl(teacher.detach(), student, temperature).mean(-1)


def softened_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``(..., C), (..., C) -> (...)``: KL(softmax(teacher / T) || softmax(student / T)), with gradients for both.

    In single precision at least: in half precision T^2 KL overflows where peers are sure of different classes.
    """
    log_teacher = (single(teacher) / temperature).log_softmax(-1)
    log_student = (single(student) / temperature).log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def row_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``(..., C), (..., C) -> (...)``: the divergence of each row. No gradient flows into the teacher."""
    return temperature**2 * softened_kl(teacher.detach(), student, temperature)


def divergence_from(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """:func:`divergence` from probabilities ``(..., B, C)``, of which some may be 0, to logits ``(..., B, C)``."""
    log_student = (single(student) / temperature).log_softmax(-1)
    return temperature**2 * (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1).mean(-1)


def mutual_divergence(logits: Tensor, temperature: float) -> Tensor:
    """``(P, B, C) -> (P,)``: for each peer the mean of the divergences from each of the others; 0 for a single one."""
    peers = len(logits)
    if peers == 1:
        return single(logits).new_zeros(1)
    pairs = divergence(logits[None], logits[:, None], temperature)  # [student, teacher]
    return (pairs.sum(1) - pairs.diagonal()) / (peers - 1)


def ramp_up(progress: float | Tensor | None, length: float) -> float | Tensor:
    """The weight of distillation while peers still know little: exp(-5 (1 - min(progress / length, 1))^2).

    The sigmoid-shaped ramp of ONE, OKDDip and FFL (80 of 300 epochs there). 1 without a length or a progress. A 0-d
    tensor gives a tensor.

    >>> ramp_up(None, 0.25), ramp_up(0.1, 0.0), ramp_up(0.25, 0.25), round(ramp_up(0.0, 0.25), 4)
    (1.0, 1.0, 1.0, 0.0067)
    """
    risen = linear_ramp(progress, length)
    return (-5 * (1 - risen) ** 2).exp() if isinstance(risen, Tensor) else math.exp(-5 * (1 - risen) ** 2)


def linear_ramp(progress: float | Tensor | None, length: float) -> float | Tensor:
    """``min(progress / length, 1)``; 1 without a length or a progress."""
    if progress is None or length == 0:
        return 1.0
    share = progress / length
    return share.clamp(max=1) if isinstance(share, Tensor) else min(share, 1.0)


def learning(values: Tensor, outputs: Outputs) -> Tensor:
    """``(P, ...) -> (L, ...)``: the rows of the L peers that learn. No list as an index: graphs forbid the copy."""
    if len(outputs.learners) == outputs.peers:
        return values
    return torch.stack([values[index] for index in outputs.learners])


def spread(values: Tensor, outputs: Outputs) -> Tensor:
    """``(L,) -> (P,)``: the numbers of the L peers that learn in the places of all P; 0 for those that do not."""
    if len(outputs.learners) == outputs.peers:
        return values
    rows = [values.new_zeros(())] * outputs.peers
    for value, index in zip(values, outputs.learners, strict=True):
        rows[index] = value
    return torch.stack(rows)


def require(
    outputs: Outputs,
    method: str,
    *,
    features: bool = False,
    stages: int = 0,
    trunk: bool = False,
    shadows: bool = False,
) -> None:
    """Raise ValueError, with what is accepted, unless the outputs have what a method compares.

    Args:
        outputs: of the cohort.
        method: for the message.
        features: what the last linear layers see.
        stages: at least so many stage outputs of each peer.
        trunk: peers that are branches on a shared trunk.
        shadows: peers that follow the others.
    """
    if features and len(outputs.features) < outputs.peers:
        raise ValueError(f"{method} compares features: outputs of a Cohort have them, these have none")
    if stages and (len(outputs.stages) < outputs.peers or min(map(len, outputs.stages)) < stages):
        raise ValueError(f"{method} compares the outputs of {stages} stages; stages=[...] of a Cohort names more")
    asked = {"features": features, "stages": bool(stages) or trunk}
    if blind := [kind for kind, wanted in asked.items() if wanted and kind in outputs.without_graph]:
        raise ValueError(
            f"{method} learns through the {blind[0]} of the peers, and one computes them without gradients; accepted: "
            "no torch.no_grad around them, and activation checkpointing with use_reentrant=False"
        )
    if trunk and not outputs.shared:
        raise ValueError(
            f"{method} needs branches on one trunk: share_trunk(networks, 'layer2') before the Cohort, or in a recipe "
            "peers=[{name: resnet32, branches: 3}]"
        )
    if shadows and not outputs.shadows:
        raise ValueError(f"{method} needs shadows of its peers: Cohort(networks, shadows=True)")


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless the targets are soft, ``(B, C)``: a batch of class indices would broadcast.

    Whether they are a distribution is looked at on a CPU only: reading them stops other devices.
    """
    if logits.ndim != 3 or not logits.shape[1] or logits.shape[2] < 2:
        raise ValueError(
            f"logits are {tuple(logits.shape)}; accepted: (peers, B, classes), at least one image and two classes"
        )
    if targets.shape != logits.shape[1:] or not torch.is_floating_point(targets):
        raise ValueError(
            f"targets are {tuple(targets.shape)} {targets.dtype}; accepted: soft ones of {tuple(logits.shape[1:])}, "
            "which plan.targets(labels, num_classes) makes"
        )
    if targets.device.type == "cpu" and not torch.compiler.is_compiling():
        check_distribution(targets)


MASKED = -1e4
"""What stands for a logit of -inf: its probability is 0 at any temperature, and 0 times its logarithm is 0."""


def finite(logits: Tensor, targets: Tensor) -> Tensor:
    """``(..., B, C)`` logits with :data:`MASKED` for -inf, which masks a class; but not where a target ``(B, C)`` has a
    share in it: such a loss is infinite, and has to be seen.

    >>> finite(torch.tensor([[0.0, -torch.inf, -torch.inf]]), torch.tensor([[0.5, 0.5, 0.0]])).tolist()
    [[0.0, -inf, -10000.0]]
    """
    return logits.masked_fill(logits.isneginf() & (targets == 0), MASKED)


def layer(channels: int, width: int, axes: int, size: int = 1, stride: int = 1) -> nn.Module:
    """A convolution over ``axes`` axes (1 to 3) that keeps the size but for its stride; over vectors a linear layer."""
    if axes == 0:
        return nn.Linear(channels, width)
    if axes > 3:
        raise ValueError(f"features of {axes} spatial axes: there are convolutions over up to 3")
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](channels, width, size, stride=stride, padding=size // 2)


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps ``(B, C, ...)`` averaged down to the smaller size on each axis.

    Where they differ in the number of axes both become vectors ``(B, C)``, the means over all positions.
    """
    if one.ndim != other.ndim:
        return pooled(one), pooled(other)
    size = tuple(min(sizes) for sizes in zip(one.shape[2:], other.shape[2:], strict=True))
    return _average(one, size), _average(other, size)


def _average(features: Tensor, size: tuple[int, ...]) -> Tensor:
    if features.shape[2:] == size:
        return features
    pools: tuple[Callable[..., Tensor], ...] = F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d
    return pools[len(size) - 1](features, size)


def single(values: Tensor) -> Tensor:
    """In single precision at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
