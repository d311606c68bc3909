"""Codistillation (Anil, Pereyra, Passos, Ormandi, Dahl, Hinton, ICLR 2018, arXiv 1804.03235).

Peers learn from what the others predicted some time ago, so that they need not run in step, nor in one process: they
exchange weights, and rarely.
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
    """Peers learn from what the others predicted some time ago; they may live in other processes.

    ``L_i = CE(z_i, y) + weight * T^2 KL(mean over j != i of p_j^earlier || p_i)`` (Algorithm 1), teachers detached.

    The teachers are earlier copies of the others, refreshed every ``interval`` steps: the cohort's shadows. The paper
    has the cross-entropy of the mean; KL has the same gradient and is 0 where there is nothing to learn. It also gives
    each peer a part of the data of its own, which is up to the loader.

    With ``exchange`` every process trains one peer and finds the others' weights in a folder that all of them reach.
    Its cohort is the own network and, frozen, the networks of the other processes in the order of their numbers, of
    whatever architectures: ``Cohort([own, *others], frozen=[1, ...])``. Every ``interval`` steps the own weights
    replace ``peer-<peer>.safetensors`` at once, and the others' are read. A file that is missing, damaged or not
    finite is passed over: its peer stays as it was, and does not teach before its first file has come. A peer that
    dies stops changing, and nobody waits for it. Such runs are not repeated in the same bits. Each needs a new folder.

    Args:
        weight: of the distillation once the burn-in is over, 1 in a third-party implementation.
        temperature: T of both softmaxes; the paper has none (1).
        interval: steps between refreshes; 50 in a third-party implementation.
        burn_in: the share of training before peers learn from each other. The paper gives steps of its own runs; 0.4
            is 28 of 70 epochs of a third-party ImageNet recipe.
        exchange: the folder; None: all peers are in this process.
        peer: the number of this process's peer, from 0; only with ``exchange``.
        peers: how many there are in all processes; only with ``exchange``.

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
            self.shadows = ""  # the other processes' peers are in their place

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
        """``(L, F)``: how much each of the L learners takes of each of the F frozen peers; rows of zeros: of none."""
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
