"""KDCL: online knowledge distillation via collaborative learning (Guo et al., CVPR 2020, pages 11020-11029).

All peers learn from one soft target, made from the predictions of all of them. In the paper every peer sees a different
augmentation, so that the target also makes them invariant to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metamixer.core.labels import soft_targets
from metamixer.core.progress import watched
from metamixer.core.ranges import Positive, Weight
from metamixer.core.types import Batch, Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import divergence_from, learning, single, soft_cross_entropy

Kind = Literal["naive", "linear", "minlogit", "general"]
RIDGE = 1e-4
"""Ridge added to the diagonal of the error covariance before it is inverted, as a share of the mean squared error."""


@dataclass(eq=False, repr=False)
class KDCL(Loss):
    """All peers learn from one soft target, made from the predictions of all of them.

    ``L_i = CE(z_i, y) + weight * T^2 KL(p_t || p_i)`` with one detached teacher ``p_t`` made from all peers.

    - ``naive``: for each sample the peer with the smallest cross-entropy.
    - ``linear``: for each sample the mixture of logits with the smallest cross-entropy, ``argmin_a CE(a^T Z, y)`` over
      the simplex, solved by :func:`best_mixture`.
    - ``minlogit``: for each class the smallest logit over the peers, after the logit of the label was subtracted. Its
      cross-entropy at T = 1 is at most that of the best peer. With soft targets t the logit of the label is
      ``sum_c t_c z_c`` (ours; equal for one-hot targets).
    - ``general``: ``p_t = sum_i w_i p_i`` with ``w = C^-1 1 / (1^T C^-1 1)``, the mixture with the smallest squared
      error on held-out images, where C_ij is their mean of ``(p_i - y) . (p_j - y)``. It is computed before every
      epoch; without held-out images all weights are equal.

    General weights may be negative; the mixture is then clamped at 0 and normalised (ours). The ridge that makes C
    invertible when peers agree is ours too. Frozen peers contribute to the teacher like the others and learn nothing.
    We know no official code; formulas, temperature and weight are from secondary sources on the paper.

    Args:
        kind: type of the teacher. In the paper ``general`` is best on CIFAR-100, ``linear`` and ``minlogit`` on
            ImageNet (from secondary sources).
        temperature: T of both softmaxes; 2 for CIFAR in the paper (from secondary sources).
        weight: weight of the distillation; 1 in the paper, with similar results from 0.2 to 5 (from secondary sources).

    >>> sure, unsure = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0, 1.0]])
    >>> outputs, targets = Outputs(torch.stack([sure, unsure])), torch.tensor([[1.0, 0.0, 0.0]])
    >>> [round(value, 3) for value in KDCL("naive")(outputs, targets)["distill"].tolist()]  # the first is the teacher
    [0.0, 0.698]
    """

    needs = ("views",)

    kind: Kind = "general"
    temperature: Positive = 2.0
    weight: Weight = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights: Tensor | None
        self.register_buffer("weights", None)

    def setup(self, outputs: Outputs) -> None:
        """Create equal weights for the peers, unless there are weights already."""
        if self.kind == "general" and (self.weights is None or len(self.weights) != outputs.peers):
            self.weights = torch.full((outputs.peers,), 1 / outputs.peers, device=outputs.logits.device)

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats."""
        logits = single(outputs.logits)
        teacher = self._teacher(logits.detach(), targets)
        students = learning(logits, outputs)
        return {
            "task": soft_cross_entropy(students, targets),
            "distill": self.weight * divergence_from(teacher, students, self.temperature),
        }

    def _teacher(self, logits: Tensor, targets: Tensor) -> Tensor:
        """``(P, B, C), (B, C) -> (B, C)``: the probabilities of the teacher."""
        if self.kind == "general":
            found = (logits / self.temperature).softmax(-1)
            mixed = found.mean(0) if self.weights is None else torch.einsum("p,pbc->bc", self.weights.to(found), found)
            mixed = mixed.clamp(min=0)
            return mixed / mixed.sum(-1, keepdim=True)
        if self.kind == "naive":
            best = (targets * logits.log_softmax(-1)).sum(-1).argmax(0)
            chosen = _rows(logits, best)
        elif self.kind == "linear":
            chosen = (best_mixture(logits, targets)[..., None] * logits).sum(0)
        else:
            chosen = (logits - (targets * logits).sum(-1, keepdim=True)).amin(0)
        return (chosen / self.temperature).softmax(-1)

    @torch.no_grad()
    def before_epoch(self, cohort: Any, held_out: Iterable[Batch] | None) -> None:
        """Compute the weights of ``general`` from the errors on held-out batches; None keeps the weights."""
        if self.kind != "general" or held_out is None:
            return
        training, sums, images = cohort.training, None, 0
        cohort.eval()
        try:
            for batch in watched(held_out, "weighing the peers"):
                outputs: Outputs = cohort(batch.images)
                errors = outputs.logits.softmax(-1) - soft_targets(batch.labels, outputs.logits.shape[-1])
                products = errors.flatten(1) @ errors.flatten(1).T
                sums = products if sums is None else sums + products
                images += len(batch)
                self.setup(outputs)
        finally:
            cohort.train(training)
        if sums is not None and self.weights is not None:
            self.weights.copy_(ensemble_weights(sums / images))


def ensemble_weights(covariance: Tensor) -> Tensor:
    """``(P, P) -> (P,)``: the weights, with the sum 1, of the mixture with the smallest squared error.

    They are C^-1 1 / (1^T C^-1 1). For two peers with independent errors, one with three times the squared error:

    >>> ensemble_weights(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    found = covariance.double().cpu()
    ridge = RIDGE * found.diagonal().mean().clamp(min=1e-12)
    solved: Tensor = torch.linalg.solve(
        found + ridge * torch.eye(len(found)), torch.ones(len(found), dtype=found.dtype)
    )
    return solved / solved.sum()


def best_mixture(logits: Tensor, targets: Tensor) -> Tensor:
    """``(P, B, C), (B, C) -> (P, B)``: for each sample the a in the simplex that minimises CE(a^T Z, t).

    The problem is convex. It is solved by a line search for two peers, and by an interior-point method for more.
    Gradient steps would be simpler, but stall or overshoot, because the curvature grows with the square of the logits.

    Args:
        logits: logits of all peers.
        targets: soft targets.
    """
    if len(logits) > 2:
        return _interior_point(logits, targets)
    weights = logits.new_full(logits.shape[:2], 1 / len(logits))
    mixed = (weights[..., None] * logits).sum(0)
    rise = ((mixed.softmax(-1) - targets) * logits).sum(-1)
    to, away = rise.argmin(0), rise.argmax(0)
    room = weights.gather(0, away[None])[0]
    step = _lowest(mixed, _rows(logits, to) - _rows(logits, away), targets, room)[None]
    return weights.scatter_add(0, to[None], step).scatter_add(0, away[None], -step)


def _interior_point(logits: Tensor, targets: Tensor, rounds: int = 40, lengths: int = 12) -> Tensor:
    """:func:`best_mixture` by Newton steps on ``CE(a^T Z, t) - mu sum_p log a_p``, where mu decreases.

    mu starts at the range of the logits divided by P. In each direction the best of ``lengths`` step lengths is taken,
    each half of the previous one. Computed in double precision if the device supports it. The result exceeds the
    minimum by less than 1e-6 nats for logits with a standard deviation of 8, and by less than 1e-3 for 30.
    """
    peers = len(logits)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    aims = targets.to(exact)
    z = logits.to(exact).transpose(0, 1)  # (B, P, C)
    z = z - (z * aims[:, None]).sum(-1, keepdim=True)  # CE(a^T Z, t) is then logsumexp(a^T z)
    a = z.new_full(z.shape[:2], 1 / peers)
    mu = ((z.amax((1, 2)) - z.amin((1, 2))) / peers).clamp(min=1e-8)[:, None]
    halves = 0.5 ** torch.arange(lengths, dtype=exact, device=z.device)[:, None, None]
    for _ in range(rounds):
        found = (a[:, :, None] * z).sum(1).softmax(-1)
        rise = (z * found[:, None]).sum(-1)
        curve = (z * found[:, None]) @ z.mT - rise[:, :, None] * rise[:, None] + torch.diag_embed(mu / a**2)
        sides = torch.stack([rise - mu / a, torch.ones_like(a)], -1)
        down, even = torch.linalg.solve_ex(curve, sides).result.unbind(-1)  # solve would synchronize
        direction = even * (down.sum(-1, keepdim=True) / even.sum(-1, keepdim=True)) - down  # its sum is 0
        direction = direction.nan_to_num(0, 0, 0)
        room = torch.where(direction < 0, -0.99 * a / direction, torch.inf).amin(-1, keepdim=True).clamp(max=1)
        tried = a + halves * room * direction  # (lengths, B, P)
        value = torch.einsum("kbp,bpc->kbc", tried, z).logsumexp(-1) - mu[:, 0] * tried.log().sum(-1)
        best = value.argmin(0)
        a = tried.gather(0, best[None, :, None].expand(1, -1, peers))[0]
        a = a / a.sum(-1, keepdim=True)
        mu = torch.where((best[:, None] == 0) & (room > 0.3), mu / 5, mu).clamp(min=1e-8)
    return a.mT.to(logits)


def _lowest(start: Tensor, direction: Tensor, targets: Tensor, room: Tensor, lines: int = 10) -> Tensor:
    """``(B, C), (B, C), (B, C), (B,) -> (B,)``: the step in [0, room] along ``direction`` with the smallest loss.

    Newton's method as long as it stays within the known bounds, otherwise bisection.
    """
    low, high, at = torch.zeros_like(room), room, room
    for _ in range(lines):
        found = (start + at[:, None] * direction).softmax(-1)
        mean = (found * direction).sum(-1)
        slope = mean - (targets * direction).sum(-1)
        curve = (found * (direction - mean[:, None]) ** 2).sum(-1)
        low, high = torch.where(slope <= 0, at, low), torch.where(slope > 0, at, high)
        newton = at - slope / curve
        at = torch.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
    return at


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """``(P, B, C), (B,) -> (B, C)``: for each sample the row of one peer."""
    return values.gather(0, index[None, :, None].expand(1, -1, values.shape[-1]))[0]
