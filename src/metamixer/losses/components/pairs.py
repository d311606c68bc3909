"""Pairwise comparisons of peers, averaged over the other peers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from metamixer.core.types import Outputs
from metamixer.losses.functional import row_divergence, same_size


def others(index: int, outputs: Outputs) -> list[int]:
    """All peers except ``index``."""
    return [other for other in range(outputs.peers) if other != index]


def means(rows: Iterable[Sequence[Tensor]]) -> Tensor:
    """``L`` rows of 0-d tensors -> ``(L,)``: the mean of each row."""
    return torch.stack([torch.stack(list(row)).mean(0) for row in rows])


def trusted_divergence(outputs: Outputs, trusted: Tensor, temperature: float) -> Tensor:
    """``(L,)``: ``mutual_divergence`` with a weight ``trusted`` for each teacher and sample, ``(P, B)``."""
    pairs = trusted * row_divergence(outputs.logits[None], outputs.logits[:, None], temperature)
    return means([pairs[i, j].mean() for j in others(i, outputs)] for i in outputs.learners)


def agreement(outputs: Outputs) -> Tensor:
    """``(L,)``: the share of samples for which another peer predicts the same class, the mean over the others."""
    named = outputs.logits.detach().argmax(-1)
    same = (named[None] == named[:, None]).to(outputs.logits.dtype).mean(-1)
    return means([same[i, j] for j in others(i, outputs)] for i in outputs.learners)


def last_maps(outputs: Outputs) -> list[Tensor]:
    """The outputs of the last stages, average-pooled to one size; the features if their numbers of axes differ."""
    stages = [peer[-1] for peer in outputs.maps]
    if len({each.ndim for each in stages}) > 1:
        return list(outputs.features)
    least = stages[0]
    for other in stages[1:]:
        least, _ = same_size(least, other)
    return [same_size(each, least)[0] for each in stages]


def smallest_mean(losses: Tensor, share: float | Tensor) -> Tensor:
    """``(L, B) -> (L,)``: the mean of the smallest losses of each row: ``share * B`` rounded down, at least one."""
    ranks = torch.argsort(losses.detach(), dim=-1, stable=True).argsort(-1)
    kept = (ranks == 0) | (ranks + 1 <= share * losses.shape[-1] + 1e-4)
    total: Tensor = torch.where(kept, losses, 0).sum(-1)
    return total / kept.sum(-1)
