"""A step counter, saved with the weights and read without synchronising the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepCount(nn.Module):
    """The number of steps done.

    It is a buffer, so that a resumed run continues to count. The host keeps a copy, because reading the buffer at every
    step would stall a GPU.

    >>> count = StepCount()
    >>> count.add(), count.add(), count.steps
    (1, 2, tensor(2))
    """

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._known: int | None = 0
        self.register_load_state_dict_post_hook(_read_anew)  # type: ignore[no-untyped-call]

    def add(self) -> int:
        """Count one more step and return the new number."""
        if self._known is None:
            self._known = int(self.steps)
        self._known += 1
        self.steps.fill_(self._known)
        return self._known


def _read_anew(module: nn.Module, keys: object) -> None:
    assert isinstance(module, StepCount)  # noqa: S101
    module._known = None
