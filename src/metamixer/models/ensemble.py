"""Several networks as one: the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from metamixer.core.probabilities import log_mean
from metamixer.core.types import logits_of


class Ensemble(nn.Module):
    """``(B, C, ...)`` images -> ``(B, classes)``: the log of the mean of the networks' probabilities.

    These logarithms are valid logits: their softmax is the mean probability, because probabilities sum to 1.

    Args:
        networks: networks with the same classes in the same order.

    Raises:
        ValueError: there are no networks.

    >>> class Sure(nn.Module):
    ...     def __init__(self, share):
    ...         super().__init__()
    ...         self.share = share
    ...     def forward(self, images):
    ...         return torch.tensor([[self.share, 1 - self.share]]).log().expand(len(images), 2)
    >>> Ensemble([Sure(0.9), Sure(0.5)])(torch.zeros(1, 1, 8, 8)).softmax(-1)
    tensor([[0.7000, 0.3000]])
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one network")
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, ...) -> (B, classes)``, at least float32 like the logits of a cohort."""
        found = [network(images) for network in self.networks]
        logits = torch.stack([logits_of(each) for each in found])
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        return log_mean(logits.log_softmax(-1))


def build_ensemble(build: Callable[..., nn.Module], members: Sequence[Mapping[str, Any]], **sizes: Any) -> Ensemble:
    """Build an ensemble of ``members``, each ``{"name": ..., "options": {...}}`` with arguments of ``build``."""
    return Ensemble([build(member["name"], **sizes, **member.get("options", {})) for member in members])
