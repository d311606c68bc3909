"""The networks of an evaluation: the peers, their ensemble, and the deployed network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.types import logits_of
from metamixer.evaluation.robustness.attacks import Network
from metamixer.metrics.diversity import ensemble

ENSEMBLE, DEPLOYED = "ensemble", "deployed"


@dataclass(frozen=True, eq=False)
class Panel:
    """R networks in the order of all tables: the peers, the ensemble, and the deployed network if there is one.

    Args:
        cohort: the peers.
        peers: names of the peers.
        deployed: the deployed network, ``(B, C, ...) -> (B, classes)`` logits.

    Raises:
        ValueError: there is not one name for each peer, or two names are equal.
    """

    cohort: Cohort
    peers: tuple[str, ...]
    deployed: nn.Module | None = None

    def __post_init__(self) -> None:
        if len(self.peers) != len(self.cohort.peers):
            raise ValueError(f"{len(self.peers)} names for {len(self.cohort.peers)} peers; expected one for each")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"the names {', '.join(self.names)} have to differ")

    @classmethod
    def of(cls, cohort: Cohort, names: Sequence[str] | None = None, deployed: nn.Module | None = None) -> Panel:
        """A panel; without names, peers are named by their indices."""
        return cls(cohort, tuple(names or map(str, range(len(cohort.peers)))), deployed)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all R networks."""
        return (*self.peers, ENSEMBLE, *((DEPLOYED,) if self.deployed is not None else ()))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all R networks: ``peer``, ``shadow``, ``frozen``, ``ensemble`` or ``deployed``."""
        shadows = len(self.peers) - self.cohort.shadows
        own: tuple[str, ...] = tuple(
            "shadow" if index >= shadows else "frozen" if index in self.cohort.frozen else "peer"
            for index in range(len(self.peers))
        )
        return (*own, "ensemble", *(("deployed",) if self.deployed is not None else ()))

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that have to be in evaluation mode."""
        return (self.cohort, *((self.deployed,) if self.deployed is not None else ()))

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(B, C, ...)`` -> logits ``(P, B, classes)`` of the peers and ``(B, classes)`` of the deployed network."""
        with torch.no_grad():
            deployed = None if self.deployed is None else _alone(self.deployed, images)
            return self.cohort(images).logits, deployed

    def votes(self, images: Tensor) -> Tensor:
        """``(B, C, ...) -> (R, B)``: the predicted class of each network."""
        peers, deployed = self.logits(images)
        own = [*peers, ensemble(peers.log_softmax(-1)), *(() if deployed is None else (deployed,))]
        return torch.stack([each.argmax(-1) for each in own])

    def network(self, row: int) -> Network:
        """Network ``row`` of R on its own, differentiable; the ensemble returns the log of the mean probability.

        It does not use the forward pass of the cohort, in which frozen peers have no graph.
        """
        peers = len(self.peers)
        if row < peers:
            return lambda images: _alone(self.cohort.peers[row], images)
        if row == peers:
            return lambda images: ensemble(
                torch.stack([_alone(peer, images).log_softmax(-1) for peer in self.cohort.peers])
            )
        deployed = self.deployed
        if deployed is None or row > peers + 1:
            raise IndexError(f"network {row} of {len(self.names)}")
        return lambda images: _alone(deployed, images)


def _alone(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = logits_of(network(images))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
