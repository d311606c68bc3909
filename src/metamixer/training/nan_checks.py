"""Detect NaN and Inf in losses and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def not_finite(terms: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """A message about the first term ``(P,)`` that is not finite; empty if there is none. Synchronizes.

    >>> not_finite({"task": torch.tensor([1.0, float("nan")])}, ["0 resnet8", "1 resnet8"])
    "the term 'task' of peer 1 resnet8 became nan"
    """
    for name, values in terms.items():
        for peer, value in zip(names, values.tolist(), strict=False):
            if not math.isfinite(value):
                return f"the term '{name}' of peer {peer} became {value}"
    return ""


def not_finite_images(images: Tensor) -> str:
    """A message about the rows ``(B, ...)`` that are not finite; empty if there are none.

    >>> not_finite_images(torch.tensor([[0.0], [float("nan")]]))
    'the images in rows 1 of the batch hold values that are infinite or NaN'
    """
    rows = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if not rows:
        return ""
    named = ", ".join(map(str, rows[:5])) + " and others" * (len(rows) > 5)
    return f"the images in rows {named} of the batch hold values that are infinite or NaN"


def not_finite_weight(module: nn.Module) -> str:
    """The name of the first weight or buffer with a value that is not finite; empty if there is none."""
    floating = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    if not floating:
        return ""
    fine = torch.stack([value.isfinite().all() for value in floating.values()]).tolist()
    return next((name for name, is_fine in zip(floating, fine, strict=True) if not is_fine), "")


class LateLook:
    """Checks the terms of the previous step, which have been copied by now, without waiting for an accelerator."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._waiting: tuple[tuple[str, ...], Tensor, str, torch.cuda.Event | None] | None = None

    def look(self, terms: Mapping[str, Tensor], when: str) -> str:
        """A message about the previous step, empty if it was finite; these terms are checked in the next call."""
        found = self.rest()
        rows = torch.stack([term.detach().float() for term in terms.values()])
        on_host = torch.empty(rows.shape, pin_memory=rows.is_cuda)
        on_host.copy_(rows, non_blocking=True)
        arrived = None
        if rows.is_cuda:
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._waiting = (tuple(terms), on_host, when, arrived)
        return found

    def rest(self) -> str:
        """A message about the last step; empty if it was finite."""
        if self._waiting is None:
            return ""
        (names, rows, when, arrived), self._waiting = self._waiting, None
        if arrived is not None:
            arrived.synchronize()
        found = not_finite(dict(zip(names, rows, strict=True)), self._names)
        return found and f"{found} in {when}"
