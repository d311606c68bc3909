"""``.safetensors``: the file format of trained classifiers."""

from __future__ import annotations

from pathlib import Path

import torch

from metamixer.export.verify import Run, reference
from metamixer.runs.classifier import Classifier


def write_safetensors(classifier: Classifier, path: Path, device: torch.device) -> None:
    """Weights and metadata; ``Classifier.load`` reads them, and needs no more than metamixer itself."""
    classifier.save(path)


def read_safetensors(path: Path, device: torch.device) -> Run:
    """The file as a function of images."""
    return reference(Classifier.load(path), torch.device("cpu"))
