"""Functions shared by losses: soft cross-entropy and divergences between peers, one value per peer."""

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
    """Apply class weights ``(C,)`` in every :func:`soft_cross_entropy` inside the block; None: equal weights.

    A context rather than an argument, so that it applies to all cross-entropies of all methods, also of ensembles.
    """
    token = _CLASS_WEIGHTS.set(weights)
    try:
        yield
    finally:
        _CLASS_WEIGHTS.reset(token)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """``(P, B, C), (B, C) -> (P,)``: -sum_c t_c log p_c in nats, the mean over the batch.

    Inside :func:`weighing` it is the batch mean of -sum_c w_c t_c log p_c, as in ``torch.nn.functional.cross_entropy``
    with soft targets.
    """
    if (weights := _CLASS_WEIGHTS.get()) is not None:
        targets = targets * weights.to(targets)
    return -(targets * single(logits).log_softmax(-1)).sum(-1).mean(-1)


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``(..., B, C), (..., B, C) -> (...)``: T^2 KL(softmax(teacher / T) || softmax(student / T)) in nats.

    The sum over the classes and the mean over the batch. ``KLDivLoss(reduction="mean")`` also divides by the number of
    classes, which makes the term too weak. T^2 keeps the size of the gradient independent of T (Hinton, Vinyals, Dean,
    arXiv 1503.02531).

    No gradient flows into the teacher.
    """
    return temperature**2 * softened_kl(teacher.detach(), student, temperature).mean(-1)


def softened_kl(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``(..., C), (..., C) -> (...)``: KL(softmax(teacher / T) || softmax(student / T)), with gradients for both.

    Computed in float32 at least: in half precision T^2 KL overflows if peers confidently predict different classes.
    """
    log_teacher = (single(teacher) / temperature).log_softmax(-1)
    log_student = (single(student) / temperature).log_softmax(-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def row_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """``(..., C), (..., C) -> (...)``: the divergence of each row. No gradient flows into the teacher."""
    return temperature**2 * softened_kl(teacher.detach(), student, temperature)


def divergence_from(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """:func:`divergence` of logits ``(..., B, C)`` from probabilities ``(..., B, C)``, some of which may be 0."""
    log_student = (single(student) / temperature).log_softmax(-1)
    return temperature**2 * (torch.xlogy(teacher, teacher) - teacher * log_student).sum(-1).mean(-1)


def mutual_divergence(logits: Tensor, temperature: float) -> Tensor:
    """``(P, B, C) -> (P,)``: for each peer the mean divergence from the other peers; 0 for a single peer."""
    peers = len(logits)
    if peers == 1:
        return single(logits).new_zeros(1)
    pairs = divergence(logits[None], logits[:, None], temperature)  # [student, teacher]
    return (pairs.sum(1) - pairs.diagonal()) / (peers - 1)


def ramp_up(progress: float | Tensor | None, length: float) -> float | Tensor:
    """A weight that rises to 1 in the first part of training: exp(-5 (1 - min(progress / length, 1))^2).

    The sigmoid-shaped ramp of ONE, OKDDip and FFL (80 of 300 epochs there). 1 if ``length`` is 0 or ``progress`` is
    None. A 0-d tensor returns a tensor.

    >>> ramp_up(None, 0.25), ramp_up(0.1, 0.0), ramp_up(0.25, 0.25), round(ramp_up(0.0, 0.25), 4)
    (1.0, 1.0, 1.0, 0.0067)
    """
    risen = linear_ramp(progress, length)
    return (-5 * (1 - risen) ** 2).exp() if isinstance(risen, Tensor) else math.exp(-5 * (1 - risen) ** 2)


def linear_ramp(progress: float | Tensor | None, length: float) -> float | Tensor:
    """``min(progress / length, 1)``; 1 if ``length`` is 0 or ``progress`` is None."""
    if progress is None or length == 0:
        return 1.0
    share = progress / length
    return share.clamp(max=1) if isinstance(share, Tensor) else min(share, 1.0)


def learning(values: Tensor, outputs: Outputs) -> Tensor:
    """``(P, ...) -> (L, ...)``: the rows of the L peers that learn.

    Stacked rather than indexed by a list, because CUDA graphs forbid the copy of the list to the device.
    """
    if len(outputs.learners) == outputs.peers:
        return values
    return torch.stack([values[index] for index in outputs.learners])


def spread(values: Tensor, outputs: Outputs) -> Tensor:
    """``(L,) -> (P,)``: the values of the L peers that learn at their indices; 0 for the other peers."""
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
        outputs: outputs of a cohort.
        method: name of the method in messages.
        features: the features of each peer are needed.
        stages: the least number of stage outputs of each peer.
        trunk: the peers must be branches on a shared trunk.
        shadows: shadows of the peers are needed.
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

    Whether each row is a distribution is checked on a CPU only, because reading values synchronizes other devices.
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
"""The replacement for a logit of -inf: its probability is 0 at any usual temperature, and its logarithm is finite."""


def finite(logits: Tensor, targets: Tensor) -> Tensor:
    """``(..., B, C)`` logits with :data:`MASKED` in place of -inf, which masks a class. Logits of classes with a share
    in the target ``(B, C)`` are kept: that loss is infinite, and must not be hidden.

    >>> finite(torch.tensor([[0.0, -torch.inf, -torch.inf]]), torch.tensor([[0.5, 0.5, 0.0]])).tolist()
    [[0.0, -inf, -10000.0]]
    """
    return logits.masked_fill(logits.isneginf() & (targets == 0), MASKED)


def layer(channels: int, width: int, axes: int, size: int = 1, stride: int = 1) -> nn.Module:
    """A padded convolution over ``axes`` axes (1 to 3), or a linear layer for vectors (``axes=0``)."""
    if axes == 0:
        return nn.Linear(channels, width)
    if axes > 3:
        raise ValueError(f"features of {axes} spatial axes: there are convolutions over up to 3")
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](channels, width, size, stride=stride, padding=size // 2)


def same_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two feature maps ``(B, C, ...)``, average-pooled to the smaller size on each axis.

    If they differ in the number of axes, both become vectors ``(B, C)``, the means over all positions.
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
    """The values in float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
