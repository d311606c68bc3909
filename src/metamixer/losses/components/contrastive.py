"""Components of contrastive methods: embeddings, similarities, and losses of their rows.

A similarity matrix has a row for every anchor and a column for every key. Leading axes hold pairs of peers or of
stages, which are computed together.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.losses.functional import single


def projector(features: int, width: int) -> nn.Sequential:
    """Linear-ReLU-Linear to ``width``, as in MCL (arXiv 2104.12565)."""
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))


def embed(projectors: Iterable[nn.Module], features: Iterable[Tensor]) -> Tensor:
    """N projectors and N features ``(B, D_n)`` -> ``(N, B, width)`` embeddings of length 1."""
    rows = [single(project(single(each))) for project, each in zip(projectors, features, strict=True)]
    return F.normalize(torch.stack(rows), dim=-1)


def similarities(anchors: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """``(..., B, D), (..., B, D) -> (..., B, B)``: inner products divided by the temperature, at least float32."""
    with torch.autocast(anchors.device.type, enabled=False):
        return single(anchors) @ single(keys).mT / temperature


def positives(targets: Tensor) -> Tensor:
    """The weight of each key as a positive of each anchor: ``(B, C)`` soft targets -> ``(B, B)``, rows sum to 1.

    With labels, all other samples of the class of an anchor have equal weight. Soft targets do not occur in the papers;
    here the weight of a pair is the inner product of its targets, the probability that labels drawn from both agree
    (ours). A sample is not a positive of itself; the row of a sample without positives is 0.
    """
    with torch.autocast(targets.device.type, enabled=False):
        pairs = targets @ targets.mT
    pairs = pairs.masked_fill(_same(len(targets), targets.device), 0)
    total = pairs.sum(-1, keepdim=True)
    return pairs / torch.where(total > 0, total, 1)


def contrast(similarities: Tensor, positives: Tensor) -> Tensor:
    """``(..., B, B), (B, B) -> (..., B)``: -sum_k positives[b, k] log softmax(row b)[k], without the sample itself.

    SupCon's L_out (Khosla et al., arXiv 2004.11362) for every anchor; 0 for an anchor without positives.
    """
    # Not -inf: a batch of one holds only the sample itself, and 0 * inf is NaN.
    alone = similarities.masked_fill(_same(similarities.shape[-1], similarities.device), -1e30)
    return -(positives * alone.log_softmax(-1)).sum(-1)


def over_others(pairs: Tensor) -> Tensor:
    """``(P, P) -> (P,)``: the sum over the columns of the other peers."""
    return pairs.masked_fill(_same(len(pairs), pairs.device), 0).sum(-1)


def _same(count: int, device: torch.device) -> Tensor:
    return torch.eye(count, dtype=torch.bool, device=device)
