"""No mixing: the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from metamixer.core.plan import MixPlan
from metamixer.mixers.base import BaseMixer, Draw


@dataclass(frozen=True)
class NoMix(BaseMixer):
    """Plain training: every plan is empty.

    >>> import torch
    >>> NoMix()(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    MixPlan(operations=())
    """

    def draw(self, draw: Draw) -> MixPlan:
        """The plan of one batch."""
        return MixPlan()
