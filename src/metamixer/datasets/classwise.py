"""Choosing images class by class: held-out parts, few-sample subsets and companions, without a loop over images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metamixer.datasets.errors import DataError
from metamixer.seeds import generator


def _by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(N,)`` -> four times ``(N,)``: the order sorted by class; and for every image where its class starts
    in that order, its rank within the class, and how many images the class has.
    """
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    order = classes.argsort(stable=True)
    starts = (counts.cumsum(0) - counts)[classes]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels)) - starts[order]
    return order, starts, ranks, counts[classes]


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """A stratified random split into a part that is kept and a part that is held out.

    Every class gives its share. What rounding leaves over goes to the classes with the largest remainders, so
    that the whole is right also where no single class holds enough images to give one. No class gives its
    last image.

    Args:
        labels: ``(N,)`` int64.
        share: the part to hold out, in [0, 1).
        seed: the same seed gives the same split.

    Returns:
        The indices kept and the indices held out, both in ascending order.

    >>> kept, held = split(torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2]), 0.25, seed=0)
    >>> len(kept), len(held), 8 in kept
    (7, 2, True)
    """
    if not 0 <= share < 1:
        raise DataError(f"a share of {share} cannot be held out; from 0 to below 1 would work, such as 0.1")
    draw = generator(seed, "split")
    shuffled = torch.randperm(len(labels), generator=draw)
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    wanted = counts * share
    quota = wanted.floor().long()
    missing = round(share * len(labels)) - int(quota.sum())
    # A class on its last image comes last, and equal remainders are decided by lot.
    remainder = torch.where(quota < counts - 1, wanted - quota, -1.0)
    lot = torch.randperm(len(counts), generator=draw)
    quota[lot[remainder[lot].argsort(stable=True, descending=True)][: max(missing, 0)]] += 1
    quota = torch.minimum(quota, counts - 1)
    ranks = torch.empty_like(classes)
    ranks[shuffled] = _by_class(classes[shuffled])[2]
    held = ranks < quota[classes]
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def limit_per_class(labels: Tensor, limit: int, seed: int) -> Tensor:
    """Indices of at most ``limit`` images of every class, drawn at random: ``(N,)`` -> ``(n,)``, ascending.

    >>> labels = torch.tensor([0, 0, 0, 1])
    >>> labels[limit_per_class(labels, 2, seed=0)]
    tensor([0, 0, 1])
    """
    if limit < 1:
        raise DataError(f"a limit of {limit} training images per class leaves none; 1 or more would work")
    shuffled = torch.randperm(len(labels), generator=generator(seed, "limit"))
    return shuffled[_by_class(labels[shuffled])[2] < limit].sort().values


@dataclass(frozen=True, eq=False)
class CompanionTable:
    """Draws another training image of the same class for every sample of a batch.

    The images are sorted by class once. A companion is then a random step onwards within the class, one to
    count - 1 with wrap-around: uniform over the others, never the image itself. Drawing among all of the
    class and drawing again after a hit is the plainer way, and needs a loop.

    Args:
        labels: ``(N,)`` int64 labels of the training images.

    >>> table = CompanionTable(torch.tensor([0, 1, 0, 2]))
    >>> table.draw(torch.tensor([0, 2, 3]), torch.Generator().manual_seed(0))
    tensor([2, 0, 3])
    """

    labels: Tensor

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _by_class(self.labels)

    @property
    def alone(self) -> int:
        """How many images are the only one of their class, and so their own companion."""
        return int((self._table[3] == 1).sum())

    def draw(self, indices: Tensor, draw: torch.Generator) -> Tensor:
        """Companions of the images ``indices``: ``(B,)`` int64 -> ``(B,)`` int64; itself if alone in its class."""
        order, starts, ranks, counts = self._table
        rank, count = ranks[indices], counts[indices]
        # The remainder of a 62-bit number is uniform to within count / 2^62.
        step = 1 + torch.randint(2**62, indices.shape, generator=draw) % (count - 1).clamp_min(1)
        return order[starts[indices] + (rank + step) % count]
