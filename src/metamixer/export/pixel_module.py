"""The exported module: normalisation and network, on uint8 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metamixer.core.types import logits_of
from metamixer.runs.classifier import Classifier


class FromPixels(nn.Module):
    """``(B, C, H, W)`` uint8 (float32 from 0 to 255 with 16 bits) -> ``(B, classes)`` float32 logits.

    Normalisation is included because it is a common source of errors: a network that expects
    ``(pixel / 255 - mean) / std`` also accepts other inputs, but with worse results. The formula is that of
    ``metamixer.data.normalise``.
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
        logits: Tensor = logits_of(self.network(images.to(torch.float32) * self.factor - self.shift))
        return logits.float()


def example(classifier: Classifier) -> Tensor:
    """Three black images; with one image a tracer could treat the batch size as a constant."""
    dtype = torch.uint8 if classifier.bits == 8 else torch.float32
    return torch.zeros(3, classifier.channels, *classifier.size, dtype=dtype)
