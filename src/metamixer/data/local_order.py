"""A random order of images in shards that uses few shards at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def local_order(shards: Tensor, buffer: int, draw: torch.Generator) -> Tensor:
    """Put shards in random order, divide their images into buffers, and shuffle each buffer.

    Args:
        shards: ``(N,)`` int64, the shard of every image.
        buffer: images in a buffer; the last one may have fewer.
        draw: generator of the random numbers.

    Returns:
        ``(N,)`` int64, image indices.

    >>> local_order(torch.tensor([0, 0, 1, 1]), 2, torch.Generator().manual_seed(0)).tolist()
    [0, 1, 3, 2]
    """
    ranks = torch.randperm(int(shards.max()) + 1, generator=draw)[shards]
    order = ranks.argsort(stable=True)
    lot = torch.randperm(len(order), generator=draw)
    return order[lot[(lot // buffer).argsort(stable=True)]]


def within_buffers(labels: Tensor, order: Tensor, buffer: int) -> Tensor:
    """A number for each class of each buffer: ``(N,)`` labels and image indices in order -> ``(N,)``, by image.

    Companions drawn by these numbers have the same class and buffer.
    """
    found = torch.empty_like(labels)
    found[order] = torch.arange(len(order)) // buffer
    return found * (labels.max() + 1) + labels
