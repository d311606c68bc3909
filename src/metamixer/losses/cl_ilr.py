"""Collaborative learning with intermediate-level representation sharing (CL-ILR; Song, Chai, NeurIPS 2018).

Heads on a shared trunk learn from the labels and from the consensus of the others (arXiv 1805.11761).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metamixer.core.ranges import Positive, Share
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import divergence, learning, ramp_up, require, soft_cross_entropy


@dataclass(eq=False, repr=False)
class CLILR(Loss):
    """Heads on a shared trunk learn from the labels and from the consensus of the other heads.

    ``L_h = b CE(z_h, y) + (1 - b) T^2 CE(q_h, p_h)``, with ``q_h = softmax(mean of the other heads' z / T)``.

    ``q_h`` is detached. The second term is computed as the divergence ``T^2 KL(q_h || p_h)``: the gradient is the same,
    because the entropy of a fixed ``q_h`` is constant, and it is 0 when the heads agree. The terms add up to the
    objective of the paper up to that constant, and ``b = 1`` is plain training.

    The other part of the method is in the trunk: its gradient is divided by the number of heads H, by
    ``share_trunk(networks, path, rescale=True)``, or in a recipe by
    ``peers=[{name: resnet32, branches: 3, rescale: true}]``. Without it the trunk learns H times as fast as each head.

    A frozen peer teaches like the others and learns nothing. A single head learns from the labels only.

    Args:
        task_weight: b, in [0, 1]; 0.5 in the public code of MCL-OKD, which includes the method for comparison.
        temperature: T of both softmaxes; 2 in that code. The code of OKDDip uses 3 for this method, a weight of 1 for
            both terms, and a mean of the others that is not detached.
        ramp_up: share of training over which the weight of the second term rises (80 of 300 epochs in the code of
            OKDDip); 0: full weight from the start, as in the paper.

    >>> outputs = Outputs(torch.zeros(3, 4, 10), stages=((torch.zeros(4, 8, 2, 2), torch.zeros(4, 16)),) * 3, shared=1)
    >>> CLILR()(outputs, torch.full((4, 10), 0.1))["distill"]
    tensor([0., 0., 0.])
    """

    needs = ("trunk",)

    task_weight: Share = 0.5
    temperature: Positive = 2.0
    ramp_up: Share = 0.0

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats.

        Raises:
            ValueError: the peers do not share a trunk.
        """
        require(outputs, "CLILR", trunk=True)
        weight = (1 - self.task_weight) * ramp_up(progress, self.ramp_up)
        distill = divergence(_mean_of_others(outputs.logits), outputs.logits, self.temperature)
        return {
            "task": self.task_weight * soft_cross_entropy(learning(outputs.logits, outputs), targets),
            "distill": weight * distill,
        }


def _mean_of_others(logits: Tensor) -> Tensor:
    """``(P, B, C) -> (P, B, C)``: for each peer the mean of the logits of the others; a single peer gets its own.

    Not computed as the sum of all minus its own, because large logits would leave rounding errors in the difference.
    """
    peers = len(logits)
    if peers == 1:
        return logits
    others = 1 - torch.eye(peers, dtype=logits.dtype, device=logits.device)
    return (others[..., None, None] * logits).sum(1) / (peers - 1)
