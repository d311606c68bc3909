"""Running means of an epoch, kept on the device and in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class Sums:
    """Sums the terms of a loss and the correct predictions of each peer on the device, without synchronizing.

    >>> sums = Sums()
    >>> logits, targets = torch.eye(2).expand(3, 2, 2), torch.eye(2)
    >>> sums.add({"task": torch.tensor([1.0, 2.0, 3.0])}, logits, targets)
    >>> sums.means()
    ({'task': [1.0, 2.0, 3.0]}, [1.0, 1.0, 1.0])
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.images = 0

    def add(self, terms: Mapping[str, Tensor], logits: Tensor, targets: Tensor) -> None:
        """Add a step: terms ``(P,)``, logits ``(P, B, C)``, soft targets ``(B, C)``."""
        count = logits.shape[1]
        right = (logits.argmax(-1) == targets.argmax(-1)).sum(-1)
        weighed = {f"term/{name}": value.detach() * count for name, value in terms.items()}
        for name, value in {**weighed, "right": right}.items():
            self.values[name] = self.values[name] + value if name in self.values else value
        self.images += count

    def means(self) -> tuple[dict[str, list[float]], list[float]]:
        """The mean of each term for each peer, and the accuracy of each peer."""
        mean = {name: (value / max(1, self.images)).tolist() for name, value in self.values.items()}
        accuracy = mean.pop("right", [])
        return {name.removeprefix("term/"): value for name, value in mean.items()}, accuracy

    def summed(self, add: Callable[[Tensor], Tensor]) -> Sums:
        """The sums over all processes; ``add`` sums a tensor over the processes."""
        whole = Sums()
        whole.values = {name: add(value) for name, value in self.values.items()}
        whole.images = int(add(torch.tensor(self.images)))
        return whole

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"values": {name: value.cpu() for name, value in self.values.items()}, "images": self.images}

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Load what :meth:`state` returned."""
        self.values = {name: value.to(device) for name, value in state["values"].items()}
        self.images = state["images"]
