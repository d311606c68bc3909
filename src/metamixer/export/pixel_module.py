"""The exported module: normalisation and network, on uint8 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metamixer.core.types import logits_of
from metamixer.runs.classifier import Classifier


class FromPixels(nn.Module):
    """``(B, C, H, W)`` uint8, or float32 from 0 to 255 where 16 bits are kept, -> ``(B, classes)`` float32 logits.

    The normalisation is inside because it is what users get wrong: a file that wants ``(pixel / 255 - mean) / std``
    accepts anything else as well, with worse results. The formula is that of ``metamixer.data.normalise``.
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


def example(classifier: Classifier, device: torch.device) -> Tensor:
    """Three black images: one would let a tracer take the batch size for a constant."""
    dtype = torch.uint8 if classifier.bits == 8 else torch.float32
    return torch.zeros(3, classifier.channels, *classifier.size, dtype=dtype, device=device)
