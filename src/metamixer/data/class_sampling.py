"""Sampling by class: held-out parts, few-sample subsets and companions, without a loop over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metamixer.core.seeding import generator
from metamixer.core.text import clean
from metamixer.data.errors import DataError


def _by_class(labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(N,)`` -> four tensors ``(N,)``: the order that sorts images by class; and for each image the position at which
    its class starts in that order, its rank within the class, and the size of the class.
    """
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    order = classes.argsort(stable=True)
    starts = (counts.cumsum(0) - counts)[classes]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(labels)) - starts[order]
    return order, starts, ranks, counts[classes]


def split(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """A stratified random split into a part that is kept and a part that is held out.

    Every class contributes its share. The images lost by rounding are taken from the classes with the largest
    remainders, so the total is right even if no single class is large enough to contribute one. No class contributes
    its last image.

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
        raise DataError(f"a share of {share} cannot be held out; expected from 0 to below 1, such as 0.1")
    draw = generator(seed, "split")
    shuffled = torch.randperm(len(labels), generator=draw)
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    wanted = counts * share
    quota = wanted.floor().long()
    missing = round(share * len(labels)) - int(quota.sum())
    # Classes with one image left come last; ties between equal remainders are broken at random.
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
        raise DataError(f"a limit of {limit} training images per class leaves none; expected 1 or more")
    shuffled = torch.randperm(len(labels), generator=generator(seed, "limit"))
    return shuffled[_by_class(labels[shuffled])[2] < limit].sort().values


@dataclass(frozen=True, eq=False)
class CompanionTable:
    """Draws another training image of the same class for every sample of a batch.

    The images are sorted by class once. A companion is a random step ahead within the class, 1 to count - 1 with
    wrap-around: uniform over the other images, never the image itself. Rejection sampling would need a loop.

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
        """Number of images that are the only one of their class, and therefore their own companion."""
        return int((self._table[3] == 1).sum())

    def draw(self, indices: Tensor, draw: torch.Generator) -> Tensor:
        """Companions of the images ``indices``: ``(B,)`` int64 -> ``(B,)`` int64; itself if alone in its class."""
        order, starts, ranks, counts = self._table
        rank, count = ranks[indices], counts[indices]
        # The remainder of a 62-bit number is uniform to within count / 2^62.
        step = 1 + torch.randint(2**62, indices.shape, generator=draw) % (count - 1).clamp_min(1)
        return order[starts[indices] + (rank + step) % count]


def members(labels: Tensor) -> tuple[Tensor, ...]:
    """The indices of the images of each class that occurs in the ``(N,)`` labels."""
    _, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    return torch.split(classes.argsort(stable=True), counts.tolist())


def deal(images: Tensor, hands: int, size: int, draw: torch.Generator) -> Tensor:
    """``(n,)`` -> ``(hands, size)``: no image is twice in a hand, or repeated before all others were used."""
    fit = len(images) // size
    rounds = [images[torch.randperm(len(images), generator=draw)[: fit * size]] for _ in range(-(-hands // fit))]
    return torch.cat([images[:0], *rounds]).view(-1, size)[:hands]


def balanced_order(labels: Tensor, draw: torch.Generator) -> Tensor:
    """``(N,)`` labels -> ``(N,)`` image indices in random order, the same number of each class up to one.

    Images of small classes are repeated, but no image before all others of its class were used. Of large classes some
    images are left out, different ones in each epoch.

    >>> labels = torch.tensor([0, 0, 0, 0, 0, 1])
    >>> labels[balanced_order(labels, torch.Generator().manual_seed(0))].bincount()
    tensor([3, 3])
    """
    classes = members(labels)
    count, over = divmod(len(labels), len(classes))
    more = torch.randperm(len(classes), generator=draw) < over
    dealt = [deal(own, count + int(one), 1, draw).flatten() for own, one in zip(classes, more.tolist(), strict=True)]
    return torch.cat(dealt)[torch.randperm(len(labels), generator=draw)]


REMEDY = (
    "train.class_weights=balanced or data.sampler=balanced makes rare classes count more; balanced accuracy and recall "
    "say what it does"
)
"""What `train` offers for classes of unequal size."""


def imbalance(names: Sequence[str], counts: Sequence[int]) -> str | None:
    """A sentence if the largest class has more than five times as many images as the smallest, else None.

    >>> imbalance(("cat", "dog"), (60, 10))
    'classes differ by more than 5 times: 60 of cat, 10 of dog'
    """
    most, least = (counts.index(end(counts)) for end in (max, min)) if counts else (0, 0)
    if not counts or counts[most] <= 5 * counts[least]:
        return None
    said = (f"{counts[at]:,} of {clean(names[at])}" for at in (most, least))
    return f"classes differ by more than 5 times: {', '.join(said)}"


@dataclass(frozen=True, eq=False)
class ClassBatches:
    """Batches with the same number of images of each of their classes, for losses that compare images of one class.

    As MPerClassSampler of pytorch-metric-learning, and as in the training of MCL (arXiv 2104.12565). The classes of a
    batch are drawn without replacement, so small classes occur as often as large ones. Unlike there, the images of a
    class are dealt like cards: shuffled, used until fewer than ``per_class`` are left, and shuffled again. Independent
    draws for each batch would leave about 37 % of the images unused in an epoch.

    Args:
        labels: ``(N,)`` int64 labels of the training images.
        classes: the name of every class.
        batch_size: images in a batch.
        per_class: images of each class in a batch.

    Raises:
        DataError: the batch size is not a multiple of ``per_class``, or there are too few classes or images of a class.

    >>> batches = ClassBatches(torch.tensor([0, 1, 0, 1, 2, 2]), ("a", "b", "c"), batch_size=4, per_class=2)
    >>> batches.labels[batches.draw(2, torch.Generator().manual_seed(0))]
    tensor([[2, 0, 2, 0],
            [2, 1, 2, 1]])
    """

    labels: Tensor
    classes: Sequence[str]
    batch_size: int
    per_class: int

    def __post_init__(self) -> None:
        B, m, known = self.batch_size, self.per_class, len(self._members)
        if m < 1:
            raise DataError(f"per_class={m}: expected at least 1")
        if B % m:
            raise DataError(
                f"batch_size={B} cannot hold per_class={m} images of each of its classes, "
                f"expected batch_size={m * max(1, B // m)}"
            )
        if B // m > known:
            raise DataError(
                f"batch_size={B} with per_class={m} needs {B // m} classes, these images have {known}; "
                f"expected batch_size={known * m}"
            )
        fewest = min(self._members, key=len)
        if len(fewest) < m:
            raise DataError(
                f"the class {self.classes[int(self.labels[fewest[0]])]!r} has {len(fewest)} images to train on, "
                f"per_class={m} needs {m} of every class"
            )

    @cached_property
    def _members(self) -> tuple[Tensor, ...]:
        return members(self.labels)

    def draw(self, batches: int, draw: torch.Generator) -> Tensor:
        """The image indices of the batches: ``(batches, batch_size)`` int64.

        A batch has one image of each of its classes, then the next image of each in the same order. So processes that
        take every n-th image have whole classes if n divides the number of classes in a batch.
        """
        count = self.batch_size // self.per_class
        drawn = torch.stack([torch.randperm(len(self._members), generator=draw)[:count] for _ in range(batches)])
        drawn = drawn.flatten()
        places = drawn.argsort(stable=True)  # class by class, in the order of the batches
        wanted = torch.bincount(drawn, minlength=len(self._members)).tolist()
        dealt = torch.empty(len(drawn), self.per_class, dtype=torch.int64)
        for images, own in zip(self._members, torch.split(places, wanted), strict=True):
            dealt[own] = deal(images, len(own), self.per_class, draw)
        return dealt.view(batches, count, self.per_class).transpose(1, 2).reshape(batches, self.batch_size)
