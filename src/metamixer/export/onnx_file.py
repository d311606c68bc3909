"""ONNX files: written by torch's exporter, read by ONNX Runtime."""

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
    """``images`` (batch, C, H, W) uint8 -> ``logits`` (batch, classes) float32, in one file with its metadata.

    Raises:
        RecipeError: onnx or onnxscript is not installed.
        ExportError: the network uses an operation that ONNX does not have.
    """
    need("export", "onnx", "onnxscript")
    with warnings.catch_warnings():
        # torch copies its own deprecated class while it exports.
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*", FutureWarning)
        try:
            program: Any = torch.onnx.export(
                FromPixels(classifier).eval(),
                (example(classifier, device),),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
        except Exception as error:  # of the tracer, the decompositions or the translation
            first = str(error).strip().partition("\n")[0]
            raise ExportError(f"{classifier.name} cannot be written as ONNX: {first}") from error
    import onnx

    model = program.model_proto
    _forget_sources(model)
    describe(model, classifier.metadata | {"format": FORMAT})
    onnx.save_model(model, str(path))  # weights inside: a second file is soon lost


def describe(model: Any, metadata: dict[str, str]) -> None:
    """Put metadata into a model, in place of what it has."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def _forget_sources(model: Any) -> None:
    """The exporter notes for every node from which line of which file on this machine it comes."""
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]


def session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU with as many threads as torch has."""
    need("export", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_onnx(path: Path, device: torch.device) -> Run:
    """The file as a function of images."""
    return _function(session(path))


def _function(opened: Any) -> Run:
    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(opened.run(["logits"], {"images": images.cpu().numpy()})[0])

    return run


@dataclass(frozen=True, eq=False)
class OnnxClassifier:
    """An exported ONNX file with the face of a :class:`metamixer.runs.classifier.Classifier`.

    Args:
        run: images to logits, by ONNX Runtime on the CPU.
        classes: the names, in the order of the logits.
        preparation: what is done with an image before.
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
        """Read what ``metamixer export --to onnx`` wrote.

        Raises:
            RecipeError: onnxruntime is not installed.
            ValueError: it is no such file.
        """
        need("export", "onnxruntime")
        try:
            opened = session(path)
        except Exception as error:  # its exceptions have no base of their own
            raise ValueError(f"{path} cannot be read: {error}") from error
        metadata = opened.get_modelmeta().custom_metadata_map
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} is not an export of metamixer: its metadata name no format {FORMAT!r}")
        said = Preprocessing.model_validate_json(metadata["preprocessing"])
        classes = tuple(json.loads(metadata["classes"]))
        return cls(_function(opened), classes, Preparation(said.channels, said.size, said.fit, said.white, said.bits))

    def probabilities(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 of this size -> ``(B, classes)`` float32, rows summing to 1."""
        return self.run(images).softmax(-1)

    def read(self, image: ImageInput) -> Tensor:
        """One image as ``(C, H, W)`` uint8, prepared as in training; ``ImageError`` if it cannot be read."""
        return self.preparation(image)
