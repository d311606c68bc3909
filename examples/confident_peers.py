"""A method of your own in one file: peers listen to each other where the other one is sure.

    cd examples
    metamixer train --data fashion-mini --peers resnet8,resnet8 --loss confident_peers:ConfidentPeers loss.threshold=0.6

Deep mutual learning (arXiv 1706.00384) copies whatever the other peer says. Here a prediction counts only where its
largest probability is above a threshold, as in selective methods for noisy labels. It is an example, not a published
method.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metamixer.core.ranges import Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses import Loss
from metamixer.losses.functional import soft_cross_entropy


@dataclass(eq=False, repr=False)
class ConfidentPeers(Loss):
    """``CE(z_i, y) + mean over j != i of [max p_j > threshold] KL(p_j || p_i)``, teachers detached.

    Args:
        threshold: the least probability of the other peer's first choice.
        weight: of the distillation.
    """

    threshold: Share = 0.5
    weight: Weight = 1.0

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats."""
        log_p = outputs.logits.log_softmax(-1)
        terms = []
        for own in range(outputs.peers):
            others = [self._listen(log_p[other], log_p[own]) for other in range(outputs.peers) if other != own]
            terms.append(torch.stack(others).mean())
        return {
            "task": soft_cross_entropy(outputs.logits, targets),
            "distill": self.weight * torch.stack(terms),
        }

    def _listen(self, other: Tensor, own: Tensor) -> Tensor:
        teacher = other.detach()
        sure = teacher.exp().amax(-1) > self.threshold
        return (sure * (teacher.exp() * (teacher - own)).sum(-1)).mean()
