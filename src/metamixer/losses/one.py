"""Knowledge distillation by on-the-fly native ensemble (ONE; Lan, Zhu, Gong, NeurIPS 2018, arXiv 1806.04606).

Branches on a shared trunk learn from their ensemble, in which a gate weights them for each image.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.core.ranges import Positive, Share, Weight
from metamixer.core.types import Outputs, Terms, pooled
from metamixer.losses.base import Loss
from metamixer.losses.functional import divergence, learning, ramp_up, require, single, soft_cross_entropy


class Gate(nn.Module):
    """The weights of the branches in the ensemble: pooled features of the trunk ``(B, D) -> (B, M)``, rows sum to 1."""

    def __init__(self, width: int, branches: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, features: Tensor) -> Tensor:
        """Linear layer, batch norm, ReLU, softmax, as in the official code."""
        scores = self.linear(features.to(self.linear.weight.dtype))
        if self.training and len(scores) == 1:  # one image has no variance: use the running statistics
            norm = self.norm
            scores = F.batch_norm(scores, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            scores = self.norm(scores)
        return scores.relu().softmax(-1)  # type: ignore[no-any-return]


@dataclass(eq=False, repr=False)
class ONE(Loss):
    """Branches on a shared trunk learn from their ensemble, weighted by a gate.

    ``L = sum_b CE(z_b, y) + CE(z_e, y) + weight r(t) sum_b T^2 KL(p_e || p_b)`` with ``z_e = sum_b g_b z_b``.

    ``g`` is the softmax of the gate over the M branches, with one value for each branch and image. As in the official
    code, the ensemble is detached as a teacher, so that only its own cross-entropy trains the gate. That cross-entropy
    also trains the trunk through the gate, and every branch in proportion to its weight. It is the term ``ensemble``,
    divided evenly among the branches. With soft targets both cross-entropies are soft. For a batch of one image the
    batch norm of the gate uses its running statistics (ours).

    Any branch can be deployed: the official code logs the first, here it is the one with the best validation accuracy.
    The gated ensemble is used in training only. The paper has three branches that share all but the last stage.

    Args:
        temperature: T of both softmaxes; 3 in the official code.
        weight: weight of the distillation; 1 in the official code.
        ramp_up: share of training over which that weight rises; 80 of 300 epochs in the official code.

    >>> import torch
    >>> outputs = Outputs(torch.zeros(3, 4, 10), stages=((torch.zeros(4, 8, 2, 2), torch.zeros(4, 16)),) * 3, shared=1)
    >>> loss = ONE()
    >>> loss.setup(outputs)
    >>> terms = loss(outputs, torch.full((4, 10), 0.1))
    >>> list(terms), terms["distill"].tolist()
    (['task', 'ensemble', 'distill'], [0.0, 0.0, 0.0])
    """

    needs = ("trunk",)

    temperature: Positive = 3.0
    weight: Weight = 1.0
    ramp_up: Share = 80 / 300

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate: Gate | None = None

    def setup(self, outputs: Outputs) -> None:
        """Create the gate for the trunk and the branches of one example, unless the existing one fits."""
        features = self._of_trunk(outputs)
        width, branches = features.shape[1], len(outputs.learners)
        if self.gate is None or self.gate.linear.weight.shape != (branches, width):
            self.gate = Gate(width, branches).to(single(features))

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``task``, ``ensemble`` and ``distill``, each ``(P,)`` in nats.

        Sets ``watched["gate"]`` to the mean weight of each branch in the ensemble.

        Raises:
            ValueError: the peers do not share a trunk, or :meth:`setup` was not called.
        """
        features = self._of_trunk(outputs)
        if self.gate is None:
            raise ValueError("ONE has no gate yet: setup(outputs) creates it from one example")
        logits = learning(outputs.logits, outputs)
        gates = self.gate(features).t()  # (M, B)
        ensemble = (gates[..., None] * logits).sum(0, keepdim=True)
        of_ensemble = soft_cross_entropy(ensemble, targets) / len(logits)
        weight = self.weight * ramp_up(progress, self.ramp_up)
        self.watched = {"gate": gates.detach().mean(1)}
        return {
            "task": soft_cross_entropy(logits, targets),
            "ensemble": of_ensemble.expand(len(logits)),
            "distill": weight * divergence(ensemble, logits, self.temperature),
        }

    def _of_trunk(self, outputs: Outputs) -> Tensor:
        require(outputs, "ONE", trunk=True)
        return pooled(outputs.maps[0][outputs.shared - 1])
