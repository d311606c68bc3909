"""KDCL: online knowledge distillation via collaborative learning (Guo et al., CVPR 2020, pages 11020-11029).

All peers learn from one soft target, made of the predictions of all of them. The paper shows every peer an augmentation
of its own, so that the target also makes them invariant to it.
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
"""Of the errors' mean square, added to the diagonal of their covariance before it is inverted."""


@dataclass(eq=False, repr=False)
class KDCL(Loss):
    """All peers learn from one soft target that is made of the predictions of all of them.

    ``L_i = CE(z_i, y) + weight * T^2 KL(p_t || p_i)`` with one teacher ``p_t`` made of all peers, detached.

    - ``naive``: of each sample the peer with the least cross-entropy.
    - ``linear``: the mixture of the logits with the least cross-entropy, ``argmin_a CE(a^T Z, y)`` over the simplex,
      of each sample by itself. Solved by :func:`best_mixture`.
    - ``minlogit``: of each class the least logit, after each peer's logit of the label was subtracted. Its
      cross-entropy at T = 1 is no greater than that of any peer. With soft targets t the label's logit is
      ``sum_c t_c z_c`` (ours; the same for one-hot ones).
    - ``general``: ``p_t = sum_i w_i p_i`` with ``w = C^-1 1 / (1^T C^-1 1)``, the mixture with the least squared error
      on held-out images, where C_ij is the mean of ``(p_i - y) . (p_j - y)`` there; anew before every epoch. Equal
      weights without held-out images.

    The general weights may be negative; then the mixture is cut at 0 and normalised (ours), as is the ridge that makes
    C invertible when peers agree. Frozen peers are in the teacher like the others and learn nothing. No official code
    is known; formulas, temperature and weight are from second-hand accounts of the paper.

    Args:
        kind: how the teacher is made. ``general`` is best on CIFAR-100 in the paper, ``linear`` and ``minlogit`` on
            ImageNet (second-hand).
        temperature: T of both softmaxes; 2 for CIFAR in the paper (second-hand).
        weight: of the distillation; 1 in the paper, and much the same from 0.2 to 5 (second-hand).

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
        """Equal weights for the peers; those that are there already stay."""
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
        """``(P, B, C), (B, C) -> (B, C)``: the probabilities that all peers learn."""
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
        """Weigh the peers of ``general`` by their errors on the held-out batches; None leaves the weights."""
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
    """``(P, P) -> (P,)``: weights that sum to 1 of the mixture with the least squared error, C^-1 1 / (1^T C^-1 1).

    Two peers of which one errs three times as much, independently:

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

    A convex problem. Of two peers it is a search along a line, of more an interior-point method: gradient steps, which
    are plainer, stall or overshoot, because the curvature grows with the square of the logits.

    Args:
        logits: of all peers.
        targets: soft.
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
    """:func:`best_mixture` by Newton steps on ``CE(a^T Z, t) - mu sum_p log a_p``, mu falling from the logits' range.

    Of each direction the best of ``lengths`` steps is taken, each half of the one before. In double precision, where
    the device has it. The excess is below 1e-6 nats for logits of deviation 8, below 1e-3 for 30.
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
        down, even = torch.linalg.solve_ex(curve, sides).result.unbind(-1)  # without waiting for the device
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
    """``(B, C), (B, C), (B, C), (B,) -> (B,)``: how far along ``direction``, in [0, room], the cross-entropy is least.

    Newton's method where it stays between the bounds that are known, and halving where it does not.
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
    """``(P, B, C), (B,) -> (B, C)``: of each sample the row of one peer."""
    return values.gather(0, index[None, :, None].expand(1, -1, values.shape[-1]))[0]
