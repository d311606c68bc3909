"""Verify a written file: read it back and compare its outputs on real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metamixer.core.types import logits_of
from metamixer.data import ImageSet, normalise
from metamixer.export.errors import ExportError
from metamixer.runs.classifier import Classifier

Run = Callable[[Tensor], Tensor]
"""``(B, C, H, W)`` uint8 on the CPU -> ``(B, classes)`` float32 logits on the CPU."""
BATCHES = (1, 3, 8)


@dataclass(frozen=True)
class Checked:
    """The result of comparing a file with the network.

    Args:
        difference: largest difference of logits.
        limit: largest allowed difference: the tolerance, multiplied by the largest absolute logit if that is above 1.
        images: number of compared images.
        batches: sizes of the batches.
    """

    difference: float
    limit: float
    images: int
    batches: tuple[int, ...] = BATCHES


@torch.no_grad()
def check(title: str, reference: Run, written: Run, images: ImageSet, tolerance: float) -> Checked:
    """Compare a file with the network on evenly spaced images, in batches of 1, 3 and 8; small sets are repeated.

    Args:
        title: name of the file in messages.
        reference: the network in PyTorch.
        written: the file, read back.
        images: test images of the run.
        tolerance: the largest difference of logits up to 1 in size; for larger logits it is relative to the largest,
            because the precision of float32 is relative.

    Raises:
        ExportError: the outputs have another shape, are NaN, or differ by more than the limit.
    """
    count = sum(BATCHES)
    chosen = torch.linspace(0, len(images) - 1, count).round().long()
    pixels = images.fetch(chosen).cpu()
    worst, largest = 0.0, 1.0
    for batch in torch.split(pixels, list(BATCHES)):
        right = reference(batch).double()
        try:
            found = written(batch).double()
        except Exception as error:  # runtimes have their own exceptions
            raise ExportError(f"{title} was written, but does not run on a batch of {len(batch)}: {error}") from error
        if found.shape != right.shape:
            raise ExportError(f"{title} returns {tuple(found.shape)} for {len(batch)} images, not {tuple(right.shape)}")
        difference = float((found - right).abs().max())
        worst = max(worst, difference) if difference == difference else float("nan")
        largest = max(largest, float(right.abs().max()))
        if worst != worst or not worst <= tolerance * largest:
            raise ExportError(
                f"{title} differs from the network: its logits for a batch of {len(batch)} differ by up to "
                f"{difference:.3g}, and {tolerance * largest:.3g} is allowed (--tolerance {tolerance:g}, "
                f"logits up to {largest:.3g}); the file was removed"
            )
    return Checked(worst, tolerance * largest, count)


def reference(classifier: Classifier, device: torch.device) -> Run:
    """The network itself, with the normalisation of training."""
    network = classifier.network

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        logits: Tensor = logits_of(network(normalise(images.to(device), classifier.mean, classifier.std)))
        return logits.float().cpu()

    return run
