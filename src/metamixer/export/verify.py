"""Verify a written file: read it back and compare it on real images."""

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
    """How close a written file comes to the network.

    Args:
        difference: the largest one of two logits.
        limit: what was allowed: the tolerance, times the largest logit's size where that is above 1.
        images: how many were asked about.
        batches: in batches of these sizes.
    """

    difference: float
    limit: float
    images: int
    batches: tuple[int, ...] = BATCHES


@torch.no_grad()
def check(title: str, reference: Run, written: Run, images: ImageSet, tolerance: float) -> Checked:
    """Compare on images spread over the set, in batches of 1, 3 and 8; a small set comes by again.

    Args:
        title: of the file, for the errors.
        reference: the network in PyTorch.
        written: the file, read back.
        images: of the run's test data.
        tolerance: the largest difference of two logits where none is larger than 1 in size; relative to the largest
            where one is, because float32 has relative precision.

    Raises:
        ExportError: another shape, a number that is none, or a difference above the limit; it says which.
    """
    count = sum(BATCHES)
    chosen = torch.linspace(0, len(images) - 1, count).round().long()
    pixels = images.fetch(chosen).cpu()
    worst, largest = 0.0, 1.0
    for batch in torch.split(pixels, list(BATCHES)):
        right = reference(batch).double()
        try:
            found = written(batch).double()
        except Exception as error:  # every runtime has exceptions of its own
            raise ExportError(f"{title} was written, but does not run on a batch of {len(batch)}: {error}") from error
        if found.shape != right.shape:
            raise ExportError(f"{title} gives {tuple(found.shape)} for {len(batch)} images, not {tuple(right.shape)}")
        difference = float((found - right).abs().max())
        worst = max(worst, difference) if difference == difference else float("nan")
        largest = max(largest, float(right.abs().max()))
        if worst != worst or not worst <= tolerance * largest:
            raise ExportError(
                f"{title} does not say what the network says: its logits for a batch of {len(batch)} differ by up to "
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
