"""The exported module: normalisation and network, on uint8 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metamixer.runs.classifier import Classifier


class FromPixels(nn.Module):
    """``(B, C, H, W)`` uint8 -> ``(B, classes)`` float32 logits.

    The normalisation is inside because it is what users get wrong: a file that wants ``(pixel / 255 - mean) / std``
    answers to anything else as well, only worse. It is the formula of ``datasets.normalise``, without the work in
    place that a graph has no use for.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network
        mean, std = torch.tensor(classifier.mean), torch.tensor(classifier.std)
        self.register_buffer("factor", (1 / (255 * std)).view(1, -1, 1, 1))
        self.register_buffer("shift", (mean / std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 -> ``(B, classes)`` float32 logits."""
        found = self.network(images.to(torch.float32) * self.factor - self.shift)
        logits: Tensor = getattr(found, "logits", found)
        return logits.float()


def example(classifier: Classifier, device: torch.device) -> Tensor:
    """Three black images: one would let a tracer take the batch size for a constant."""
    return torch.zeros(3, classifier.channels, *classifier.size, dtype=torch.uint8, device=device)
