"""Deep mutual learning (Zhang, Xiang, Hospedales, Lu, CVPR 2018, arXiv 1706.00384).

Each peer learns from the labels and from the current predictions of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metamixer.core.ranges import Positive, Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import learning, mutual_divergence, ramp_up, soft_cross_entropy


@dataclass(eq=False, repr=False)
class DML(Loss):
    """Peers learn from the labels and from the current predictions of the others.

    ``L_i = CE(z_i, y) + weight * mean over j != i of T^2 KL(p_j || p_i)``, teachers detached (Eq. 8, 9).

    All peers are updated together after one forward pass. With three or more peers, each minimises the mean of the
    divergences rather than the divergence from the mean prediction, which the paper finds too peaked. A frozen peer
    teaches like the others and learns nothing. ``Trainer(update="alternating")`` is the update of Algorithm 1 of the
    paper.

    Args:
        temperature: T of both softmaxes. 1 in the paper, 3 or 4 in later work.
        weight: weight of the distillation.
        ramp_up: share of training over which the weight rises to its full value (80 of 300 epochs in later work); 0:
            full weight from the start, as in the paper.

    >>> import torch
    >>> same = torch.zeros(2, 4, 10)
    >>> DML()(Outputs(same), torch.full((4, 10), 0.1))["distill"]
    tensor([0., 0.])
    """

    temperature: Positive = 1.0
    weight: Weight = 1.0
    ramp_up: Share = 0.0

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats.

        ``progress`` is the share of training that is done; None: full weight.
        """
        weight = self.weight * ramp_up(progress, self.ramp_up)
        distill = mutual_divergence(outputs.logits, self.temperature)
        return {
            "task": soft_cross_entropy(learning(outputs.logits, outputs), targets),
            "distill": weight * distill,
        }
