"""No mixing: the baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metamixer.plan import MixPlan


@dataclass(frozen=True)
class NoMix:
    """Plain training: every plan is empty.

    >>> NoMix()(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    MixPlan(operations=())
    """

    wants_companions: ClassVar[bool] = False

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        companions: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: float | None = None,
    ) -> MixPlan:
        """Draw the plan of one batch; the arguments are those of :class:`~metamixer.Mixer`."""
        return MixPlan()
