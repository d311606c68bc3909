"""Online knowledge distillation with diverse peers (OKDDip; Chen, Mei, Wang, Feng, Chen, AAAI 2020, arXiv 1912.00350).

Auxiliary peers stay diverse because attention gives each its own mixture to learn from; a leader learns from all.
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
    """Auxiliary peers learn from individual mixtures of each other; a leader learns from all of them.

    ``L = sum_i CE(z_i, y) + weight r(t) [sum_a T^2 KL(t_a || p_a) + T^2 KL(mean_a z_a || p_leader)]``.

    The last peer that learns is the group leader, which is deployed; all others are auxiliary peers (a, b). The target
    of an auxiliary peer is ``t_a = sum_b alpha_ab z_b``, where b includes a and ``alpha_ab`` is the softmax over b of
    ``(W_L h_a) . (W_E h_b)``, with h the input of the last linear layer. The paper mixes softened predictions, the
    official code mixes logits; we follow the code here and in the following. ``W_L`` and ``W_E`` are linear layers
    without bias from C to C / 8 channels, shared by all peers, and the products are not scaled.

    Nothing is detached: this is how ``W_L`` and ``W_E`` learn. Gradients of the targets also flow into the peers that
    contribute to them, so that the term of the leader moves the auxiliary peers too. ``detach=True`` (ours) keeps these
    gradients out of the logits of the peers; the attention and the features before it still learn from them.

    Peers may be separate networks or branches on a trunk. If their features differ in width, which does not occur in
    the paper, each width has its own layers, to an eighth of the smallest width. Frozen peers are ignored.

    Args:
        temperature: T of both softmaxes; 3 in the official code.
        weight: weight of the distillation; 1 in the official code.
        ramp_up: share of training over which that weight rises; 80 of 300 epochs in the official code.
        reduction: C divided by the width of the attention; 8 in the official code.
        detach: keep gradients of the targets out of the logits of the peers.

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
        """Create the layers of the attention for the features of one example; keep those that fit."""
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
            ValueError: fewer than two peers learn, or :meth:`setup` was not called.
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
        """The leader only: the last peer that learns."""
        return [peers - 1 if self._leader is None else self._leader]

    def _auxiliary(self, outputs: Outputs) -> list[Tensor]:
        if len(outputs.learners) < 2:
            raise ValueError(
                f"OKDDip needs a leader and auxiliary peers, {len(outputs.learners)} learns here; "
                "4 peers are the paper's"
            )
        return [outputs.features[index] for index in outputs.learners[:-1]]

    def _attention(self, auxiliary: list[Tensor], precision: torch.dtype) -> Tensor:
        """``(A, A, B)``: for each image the share of peer b in the target of peer a; the sum over b is 1."""
        found = []
        for layers in (self.query, self.key):
            if missing := [features.shape[1] for features in auxiliary if str(features.shape[1]) not in layers]:
                raise ValueError(f"OKDDip has no attention for features of {missing[0]} numbers: setup(outputs) first")
            chosen = [cast(nn.Linear, layers[str(features.shape[1])]) for features in auxiliary]
            found.append([layer(x.to(layer.weight.dtype)) for layer, x in zip(chosen, auxiliary, strict=True)])
        query, key = (torch.stack(rows).to(precision) for rows in found)  # (A, B, size)
        return (query[:, None] * key).sum(-1).softmax(1)
