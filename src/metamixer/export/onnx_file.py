"""ONNX files: written by the exporter of torch, read by ONNX Runtime."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamixer.data.files.preparation import ImageInput, Preparation
from metamixer.export.errors import ExportError, need
from metamixer.export.pixel_module import FromPixels, example
from metamixer.export.verify import Run
from metamixer.runs.classifier import Classifier, Preprocessing

FORMAT = "metamixer-onnx-1"


def write_onnx(classifier: Classifier, path: Path, device: torch.device) -> None:
    """Write a model ``images`` (batch, C, H, W) uint8 -> ``logits`` (batch, classes) float32, with its metadata.

    Raises:
        RecipeError: onnx or onnxscript is not installed.
        ExportError: the network has an operation that ONNX does not support.
    """
    need("export", "onnx", "onnxscript")
    with warnings.catch_warnings():
        # A deprecation warning of torch about its own exporter.
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*", FutureWarning)
        try:
            program: Any = torch.onnx.export(
                FromPixels(classifier).eval(),
                (example(classifier),),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
        except Exception as error:  # any error of tracing, decomposition or translation
            first = str(error).strip().partition("\n")[0]
            raise ExportError(f"{classifier.name} cannot be written as ONNX: {first}") from error
    import onnx

    model = program.model_proto
    _forget_sources(model)
    describe(model, classifier.metadata | {"format": FORMAT})
    onnx.save_model(model, str(path))  # weights in the same file, so that they are not lost


def describe(model: Any, metadata: dict[str, str]) -> None:
    """Replace the metadata of a model."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _forget_sources(model: Any) -> None:
    """Remove the source locations of nodes, which the exporter records with paths of this machine."""
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]


def session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU with the number of threads of torch."""
    need("export", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_onnx(path: Path, device: torch.device) -> Run:
    """Load a file as a function of images."""
    return _function(session(path))


def _function(opened: Any) -> Run:
    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(opened.run(["logits"], {"images": images.cpu().numpy()})[0])

    return run


@dataclass(frozen=True, eq=False)
class OnnxClassifier:
    """An exported ONNX file with the interface of :class:`metamixer.runs.classifier.Classifier`.

    Args:
        run: maps images to logits with ONNX Runtime on the CPU.
        classes: names of the classes, in the order of the logits.
        preparation: preparation of the images.
    """

    run: Run
    classes: tuple[str, ...]
    preparation: Preparation

    @property
    def channels(self) -> int:
        """1 (grey), 3 (colour) or more."""
        return self.preparation.channels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.preparation.size

    @classmethod
    def load(cls, path: Path) -> OnnxClassifier:
        """Load a file written by ``metamixer export --to onnx``.

        Raises:
            RecipeError: onnxruntime is not installed.
            ValueError: it is not such a file.
        """
        need("export", "onnxruntime")
        try:
            opened = session(path)
        except Exception as error:  # its exceptions have no common base class
            raise ValueError(f"{path} cannot be read: {error}") from error
        metadata = opened.get_modelmeta().custom_metadata_map
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not an export of metamixer: its metadata name no format {FORMAT!r}")
        said = Preprocessing.model_validate_json(metadata["preprocessing"])
        classes = tuple(json.loads(metadata["classes"]))
        return cls(_function(opened), classes, Preparation(said.channels, said.size, said.fit, said.white, said.bits))

    def probabilities(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 images of :attr:`size` -> ``(B, classes)`` float32; rows sum to 1."""
        return self.run(images).softmax(-1)

    def read(self, image: ImageInput) -> Tensor:
        """Prepare an image as in training, ``(C, H, W)`` uint8; ``ImageError`` if it cannot be read."""
        return self.preparation(image)
