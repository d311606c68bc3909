"""Averaged weights of the peers: an exponential moving average over the steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from metamixer.cohort.cohort import Cohort


class Average(nn.Module):
    """``average = d * average + (1 - d) * peer`` after every step, for weights and statistics, as in timm and torch.

    d rises to ``decay`` as (1 + t) / (10 + t), so that the first steps lose their weight quickly. Peers that do not
    learn, including shadows, are copied.

    Args:
        cohort: the cohort, on its training device.
        decay: d, in (0, 1).
    """

    def __init__(self, cohort: Cohort, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = copy.deepcopy(cohort.peers).requires_grad_(False)

    @torch.no_grad()
    def update(self, cohort: Cohort, steps: int) -> None:
        """Update the averages after a step."""
        decay, moved = min(self.decay, (1 + steps) / (10 + steps)), set[int]()
        for index, (average, peer) in enumerate(zip(self.module, cohort.peers, strict=True)):
            own, followed = average.state_dict(keep_vars=True), peer.state_dict()
            for name, value in own.items():
                if id(value) in moved:  # in a shared trunk
                    continue
                moved.add(id(value))
                if value.is_floating_point() and index not in cohort.frozen:
                    value.lerp_(followed[name], 1 - decay)
                else:
                    value.copy_(followed[name])

    @contextmanager
    def shown(self, cohort: Cohort) -> Iterator[None]:
        """Give the peers the averaged weights inside the block."""
        learned = {name: value.clone() for name, value in cohort.peers.state_dict().items()}
        cohort.peers.load_state_dict(self.module.state_dict())
        try:
            yield
        finally:
            cohort.peers.load_state_dict(learned)


def in_place_of_peers(name: str) -> str | None:
    """The name of the peer tensor that an averaged tensor of a checkpoint replaces; None for other tensors."""
    prefix = "average.module."
    return f"cohort.peers.{name.removeprefix(prefix)}" if name.startswith(prefix) else None
