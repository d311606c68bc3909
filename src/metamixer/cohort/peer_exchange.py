"""Peers spread over processes: each process computes its own peers, and their outputs are gathered.

Every process gets the logits of all peers, and the features where the loss looks at them, as values; its own carry
their graph. It then computes the whole objective itself. The gradient that reaches its own peers is the one that they
have with all peers in one process, because that depends on the others through their outputs alone; and what the loss
learns gets the same gradient everywhere, so that the copies stay equal without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Found = tuple[Tensor, ...]
"""Of one peer: logits ``(B, C)``, features ``(B, D)``, and what its stages put out."""


class Elsewhere(nn.Module):
    """Stands for a peer that is in another process; it has no weights here."""

    def forward(self, images: Tensor) -> Tensor:
        """Raise an error: the peer is in another process."""
        raise RuntimeError("this peer is trained by another process")


class PeerExchange:
    """Hands the outputs of the peers from process to process, in one collective for each forward pass.

    Args:
        owned: ``owned[g]``: the peers of process g of the group, by their numbers in the cohort.
        rank: this process's place in the group.
        group: of ``torch.distributed``; None: all processes.
        features: whether features travel as well as logits.
    """

    def __init__(self, owned: Sequence[Sequence[int]], rank: int, group: Any = None, features: bool = False) -> None:
        self.owned, self.rank, self.group, self.features = owned, rank, group, features
        self.received = 0
        """Bytes that came in, over all passes."""
        self._shapes: list[list[tuple[int, int]]] | None = None

    @property
    def own(self) -> Sequence[int]:
        """The peers that are here."""
        return self.owned[self.rank]

    def __call__(self, found: Sequence[Found | None]) -> list[Found]:
        """Of every peer here logits, features and stages; None for the others -> the same for all, those of the others
        without a graph and without stages.

        Raises:
            ValueError: the peers disagree about the number of classes.
        """
        here = {peer: each for peer in self.own if (each := found[peer]) is not None}
        shapes = self._agree([(each[0].shape[1], each[1].shape[1]) for each in here.values()])
        batch = len(next(iter(here.values()))[0])
        sizes = [batch * sum(classes + width * self.features for classes, width in each) for each in shapes]
        first = next(iter(here.values()))[0]
        # Padded to one length, which a gathering of all asks for: networks differ in the width of their features.
        sent = first.new_zeros(max(sizes))
        parts = [each[part].detach().to(first).flatten() for each in here.values() for part in range(1 + self.features)]
        torch.cat(parts, out=sent[: sizes[self.rank]])
        came = [torch.empty_like(sent) for _ in self.owned]
        dist.all_gather(came, sent, group=self.group)
        self.received += (len(self.owned) - 1) * sent.numel() * sent.element_size()
        everything: list[Found] = [here.get(peer, ()) for peer in range(len(found))]
        for peers, widths, size, flat in zip(self.owned, shapes, sizes, came, strict=True):
            lengths = [batch * number for shape in widths for number in shape[: 1 + self.features]]
            pieces = iter(torch.split(flat[:size], lengths))
            for peer, (classes, width) in zip(peers, widths, strict=True):
                logits = next(pieces).view(batch, classes)
                features = next(pieces).view(batch, width) if self.features else logits.new_empty(batch, 0)
                everything[peer] = everything[peer] or (logits, features)
        return everything

    def _agree(self, own: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """The numbers of classes and features of the peers of every process, exchanged once."""
        if self._shapes is None:
            shapes: list[Any] = [None] * len(self.owned)
            dist.all_gather_object(shapes, own, group=self.group)
            self._shapes = shapes
        return self._shapes
