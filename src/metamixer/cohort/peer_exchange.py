"""Peers distributed over processes: each process computes its own peers, and the outputs are gathered.

Every process gets the logits of all peers, and their features if the loss uses them. Those of its own peers have a
graph; the others are constants. Every process then computes the whole loss. The gradients of its own peers are the same
as with all peers in one process, because they depend on the other peers through their outputs only. The weights of the
loss itself get the same gradient in all processes, so their copies stay equal without communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

Found = tuple[Tensor, ...]
"""Outputs of one peer: logits ``(B, C)``, features ``(B, D)``, and the stage outputs."""


class Elsewhere(nn.Module):
    """A peer that another process holds: it has no weights here, and refuses to be called."""

    def forward(self, images: Tensor) -> Tensor:
        """Raise an error: the peer is in another process."""
        raise RuntimeError("this peer is trained by another process")


class PeerExchange:
    """Exchanges the outputs of peers among processes, in one collective per forward pass.

    Args:
        owned: ``owned[g]`` are the indices of the peers of process g of the group.
        rank: rank of this process in the group.
        group: process group of ``torch.distributed``; None: all processes.
        features: whether to exchange features as well as logits.
    """

    def __init__(self, owned: Sequence[Sequence[int]], rank: int, group: Any = None, features: bool = False) -> None:
        self.owned, self.rank, self.group, self.features = owned, rank, group, features
        self.received = 0
        """Bytes received in all passes."""
        self._shapes: list[list[tuple[int, int]]] | None = None

    @property
    def own(self) -> Sequence[int]:
        """The peers of this process."""
        return self.owned[self.rank]

    def __call__(self, found: Sequence[Found | None]) -> list[Found]:
        """Gather the outputs of all peers.

        Args:
            found: logits, features and stages of the peers of this process; None for the others.

        Returns:
            The outputs of all peers; those of other processes have no graph and no stages.
        """
        here = {peer: each for peer in self.own if (each := found[peer]) is not None}
        shapes = self._agree([(each[0].shape[1], each[1].shape[1]) for each in here.values()])
        batch = len(next(iter(here.values()))[0])
        sizes = [batch * sum(classes + width * self.features for classes, width in each) for each in shapes]
        first = next(iter(here.values()))[0]
        # all_gather needs equal lengths, and networks differ in the width of their features: pad to the longest.
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
        """The numbers of classes and features of all peers, by process; exchanged once."""
        if self._shapes is None:
            shapes: list[Any] = [None] * len(self.owned)
            dist.all_gather_object(shapes, own, group=self.group)
            self._shapes = shapes
        return self._shapes
