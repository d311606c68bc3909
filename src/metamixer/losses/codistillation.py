"""Codistillation (Anil, Pereyra, Passos, Ormandi, Dahl, Hinton, ICLR 2018, arXiv 1804.03235).

Peers learn from predictions of earlier copies of the others. They need not run synchronously or in one process, because
they only exchange weights, and rarely.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamixer.core.ranges import Count, Positive, Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.step_counter import StepCount
from metamixer.losses.functional import divergence_from, learning, require, single, soft_cross_entropy


@dataclass(eq=False, repr=False)
class Codistillation(Loss):
    """Peers learn from predictions of earlier copies of the others, which may run in other processes.

    ``L_i = CE(z_i, y) + weight * T^2 KL(mean over j != i of p_j^earlier || p_i)`` (Algorithm 1), teachers detached.

    The teachers are earlier copies of the others, refreshed every ``interval`` steps: the shadows of the cohort. The
    paper uses the cross-entropy with the mean; KL has the same gradient and is 0 when peer and mean agree. The paper
    also trains each peer on a different part of the data, which is up to the loader.

    With ``exchange``, every process trains one peer and reads the weights of the others from a shared folder. Its
    cohort is its own network followed by the networks of the other processes, frozen and in the order of their
    numbers, of any architectures: ``Cohort([own, *others], frozen=[1, ...])``. Every ``interval`` steps the process
    atomically replaces ``peer-<peer>.safetensors`` by its own weights and reads those of the others. A file that is
    missing, damaged or not finite is skipped: its peer keeps its weights, and does not teach before its first file has
    been read. No process waits for another, so a failed one does not block the others. Such runs are not reproducible
    bit by bit. Each run needs a new folder.

    Args:
        weight: weight of the distillation after the burn-in; 1 in a third-party implementation.
        temperature: T of both softmaxes; the paper has none (1).
        interval: steps between refreshes; 50 in a third-party implementation.
        burn_in: share of training before peers learn from each other. The paper gives steps of its own runs; 0.4 is 28
            of 70 epochs of a third-party ImageNet recipe.
        exchange: the shared folder; None: all peers are in this process.
        peer: number of the peer of this process, from 0; only with ``exchange``.
        peers: number of peers in all processes; only with ``exchange``.

    >>> old, new = torch.tensor([[[0.0, 2.0]], [[1.0, 0.0]]]), torch.zeros(2, 1, 2)
    >>> outputs = Outputs(torch.cat([new, old]), frozen=(2, 3), shadows=2)
    >>> Codistillation()(outputs, torch.tensor([[1.0, 0.0]]))["distill"]  # the first learns from the second's copy
    tensor([0.1109, 0.3278, 0.0000, 0.0000])
    """

    needs = ("shadows",)
    shadows = "earlier"

    weight: Weight = 1.0
    temperature: Positive = 1.0
    interval: Count = 50
    burn_in: Share = 0.4
    exchange: str | None = None
    peer: int = 0
    peers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exchange is not None and not 0 <= self.peer < self.peers:
            raise ValueError(f"peer={self.peer}, peers={self.peers}: the peers of all processes are numbered from 0")
        self.count = StepCount()
        self.arrived: Tensor | None
        self.register_buffer("arrived", None if self.exchange is None else torch.zeros(self.peers - 1))
        if self.exchange is not None:
            self.shadows = ""  # the peers of other processes take their place

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,), "distill": (P,)}`` in nats."""
        earlier = single(torch.stack([outputs.logits[index] for index in outputs.frozen]).detach())
        shares = self._shares(outputs).to(earlier)
        teachers = torch.einsum("lf,fbc->lbc", shares, (earlier / self.temperature).softmax(-1))
        own = learning(outputs.logits, outputs)
        return {
            "task": soft_cross_entropy(own, targets),
            "distill": self._on(progress) * self.weight * divergence_from(teachers, own, self.temperature),
        }

    def _on(self, progress: float | Tensor | None) -> float | Tensor:
        if isinstance(progress, Tensor):
            return (progress >= self.burn_in).to(torch.float32)
        return float(progress is None or progress >= self.burn_in)

    def _shares(self, outputs: Outputs) -> Tensor:
        """``(L, F)``: the weight of each of the F frozen peers for each of the L learners; zeros: no teacher."""
        learners, frozen = len(outputs.learners), len(outputs.frozen)
        if self.arrived is None:
            require(outputs, "codistillation", shadows=True)
            return (1 - torch.eye(learners, device=outputs.logits.device)) / max(learners - 1, 1)
        if (learners, frozen) != (1, len(self.arrived)):
            raise ValueError(
                f"codistillation with exchange trains one peer in each process: here {learners} learn and {frozen} are "
                f"frozen; expected Cohort(networks, frozen={list(range(1, len(self.arrived) + 1))}) of "
                f"{len(self.arrived) + 1} networks"
            )
        return (self.arrived / self.arrived.sum().clamp(min=1))[None]

    @torch.no_grad()
    def after_step(self, cohort: Any) -> None:
        """Refresh the teachers every ``interval`` steps."""
        if self.count.add() % self.interval:
            return
        if self.exchange is None or self.arrived is None:
            cohort.update_shadows(0.0)
            return
        others = [number for number in range(len(self.arrived) + 1) if number != self.peer]
        for place in cohort.exchange_weights(Path(self.exchange), self.peer, others):
            self.arrived[place] = 1
