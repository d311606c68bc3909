"""The values that travel between the parts: a batch, what the peers put out, and the terms of a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Terms = Mapping[str, Tensor]
"""The terms of a loss by name, each ``(P,)``: one number for every peer."""


@dataclass(frozen=True)
class Batch:
    """Images with their labels, and, where the data side draws them, a companion for every image.

    Args:
        images: ``(B, C, ...)`` float, normalised: signals, images or volumes.
        labels: ``(B,)`` int64 class indices.
        companions: ``(B, C, ...)``; ``companions[b]`` is another training image of class ``labels[b]``
            (the image itself, augmented anew, where its class holds no other). None: the mixer pairs inside
            the batch.
    """

    images: Tensor
    labels: Tensor
    companions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Outputs:
    """What a cohort of P peers puts out for one batch.

    Args:
        logits: ``(P, B, C)`` before the softmax.
        stages: ``stages[p][k]`` is the output of stage ``k + 1`` of peer ``p``, after mixing. Every peer has
            the same number of entries, aligned by relative depth.
    """

    logits: Tensor
    stages: tuple[tuple[Tensor, ...], ...] = ()

    @property
    def peers(self) -> int:
        """The number of peers P."""
        return len(self.logits)


def total(terms: Terms) -> Tensor:
    """The objective: the sum of all terms of all peers, a 0-d tensor to call ``backward()`` on.

    A sum over the peers and no mean, because the gradient of one peer must not shrink when others join.

    >>> total({"task": torch.tensor([1.0, 2.0]), "distill": torch.tensor([0.5, 0.5])})
    tensor(4.)
    """
    return torch.stack([term.sum() for term in terms.values()]).sum()
