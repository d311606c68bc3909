"""Online knowledge distillation with diverse peers (OKDDip; Chen, Mei, Wang, Feng, Chen, AAAI 2020, arXiv 1912.00350).

Auxiliary peers each learn from a mixture of their own choice, by attention, and stay diverse; a leader learns from all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from metamixer.core.ranges import Count, Positive, Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import learning, ramp_up, require, single, soft_cross_entropy, softened_kl


@dataclass(eq=False, repr=False)
class OKDDip(Loss):
    """Auxiliary peers learn from mixtures of their own choice, and a leader learns from all of them.

    ``L = sum_i CE(z_i, y) + weight r(t) [sum_a T^2 KL(t_a || p_a) + T^2 KL(mean_a z_a || p_leader)]``.

    The last peer that learns is the group leader, which is deployed; all others are auxiliary (a, b). Each has a
    target ``t_a = sum_b alpha_ab z_b`` of its own, itself included, with ``alpha_ab`` the softmax over b of
    ``(W_L h_a) . (W_E h_b)`` from the features h that its last linear layer sees. The paper mixes softened
    predictions, the official code logits; this is the code's way, as is all that follows. ``W_L`` and ``W_E`` are
    linear layers without bias from C to C / 8 numbers, the same for all peers, and the products are not scaled.

    Nothing is detached: that is how ``W_L`` and ``W_E`` learn, and it lets the targets' gradients into the peers that
    make them up, so that the leader's term moves the auxiliary peers as well. ``detach=True``, ours, keeps them out of
    the peers' logits; the attention (and the features that it sees) learns from them in either case.

    Peers may be networks of their own or branches on a trunk. Where their features differ in width, which the paper
    does not have, each width has layers of its own, to an eighth of the smallest. A frozen peer is left aside.

    Args:
        temperature: T of both softmaxes; 3 in the official code.
        weight: of the distillation; 1 in the official code.
        ramp_up: the share of training over which that weight rises; 80 of 300 epochs in the official code.
        reduction: C over the width of the attention; 8 in the official code.
        detach: keep the gradients of the targets out of the peers' logits.

    >>> outputs = Outputs(torch.zeros(4, 5, 10), features=(torch.zeros(5, 16),) * 4)
    >>> loss = OKDDip()
    >>> loss.setup(outputs)
    >>> loss(outputs, torch.full((5, 10), 0.1))["distill"].tolist(), loss.deployable(4)
    ([0.0, 0.0, 0.0, 0.0], [3])
    """

    needs = ("features",)

    temperature: Positive = 3.0
    weight: Weight = 1.0
    ramp_up: Share = 80 / 300
    reduction: Count = 8
    detach: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.query, self.key = nn.ModuleDict(), nn.ModuleDict()  # by the width of the features
        self._leader: int | None = None

    def setup(self, outputs: Outputs) -> None:
        """Create the attention's layers for the features of one example; those that fit already stay."""
        require(outputs, "OKDDip", features=True)
        auxiliary = self._auxiliary(outputs)
        self._leader = outputs.learners[-1]
        size = max(min(features.shape[1] for features in auxiliary) // self.reduction, 1)
        for layers in (self.query, self.key):
            for features in auxiliary:
                width = features.shape[1]
                if str(width) not in layers or layers[str(width)].out_features != size:
                    layers[str(width)] = nn.Linear(width, size, bias=False).to(single(features))

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats.

        Raises:
            ValueError: fewer than two peers that learn, or before :meth:`setup`.
        """
        require(outputs, "OKDDip", features=True)
        logits = learning(outputs.logits, outputs)  # (A + 1, B, C), the leader last
        attention = self._attention(self._auxiliary(outputs), logits.dtype)
        teachers = logits[:-1].detach() if self.detach else logits[:-1]
        mixtures = (attention[..., None] * teachers).sum(1)
        aims = torch.cat([mixtures, teachers.mean(0, keepdim=True)])
        weight = self.weight * ramp_up(progress, self.ramp_up)
        return {
            "task": soft_cross_entropy(logits, targets),
            # Not detached, unlike functional.divergence: the attention learns from its targets.
            "distill": weight * (self.temperature**2 * softened_kl(aims, logits, self.temperature).mean(-1)),
        }

    def deployable(self, peers: int) -> list[int]:
        """The leader alone: of ``peers`` the last that learns."""
        return [peers - 1 if self._leader is None else self._leader]

    def _auxiliary(self, outputs: Outputs) -> list[Tensor]:
        if len(outputs.learners) < 2:
            raise ValueError(
                f"OKDDip needs a leader and auxiliary peers, {len(outputs.learners)} learns here; "
                "4 peers are the paper's"
            )
        return [outputs.features[index] for index in outputs.learners[:-1]]

    def _attention(self, auxiliary: list[Tensor], precision: torch.dtype) -> Tensor:
        """``(A, A, B)``: how much of peer b is in the target of peer a, for each image; the sum over b is 1."""
        found = []
        for layers in (self.query, self.key):
            if missing := [features.shape[1] for features in auxiliary if str(features.shape[1]) not in layers]:
                raise ValueError(f"OKDDip has no attention for features of {missing[0]} numbers: setup(outputs) first")
            chosen = [cast(nn.Linear, layers[str(features.shape[1])]) for features in auxiliary]
            found.append([layer(x.to(layer.weight.dtype)) for layer, x in zip(chosen, auxiliary, strict=True)])
        query, key = (torch.stack(rows).to(precision) for rows in found)  # (A, B, size)
        return (query[:, None] * key).sum(-1).softmax(1)
