"""``.safetensors``: the file format of trained classifiers."""

from __future__ import annotations

from pathlib import Path

import torch

from metamixer.export.verify import Run, reference
from metamixer.runs.classifier import Classifier


def write_safetensors(classifier: Classifier, path: Path, device: torch.device) -> None:
    """Write weights and metadata in the format of ``Classifier.load``, which needs no extra packages."""
    classifier.save(path)


def read_safetensors(path: Path, device: torch.device) -> Run:
    """Load a file as a function of images."""
    return reference(Classifier.load(path), torch.device("cpu"))
