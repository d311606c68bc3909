"""``.pt2`` files: graphs that ``torch.export.load`` reads without the code of the network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from metamixer.export.errors import ExportError
from metamixer.export.pixel_module import FromPixels, example
from metamixer.export.verify import Run
from metamixer.runs.classifier import Classifier

FORMAT = "metamixer-torch-export-1"
METADATA = "metamixer.json"


def write_pt2(classifier: Classifier, path: Path, device: torch.device) -> None:
    """Write a program ``(B, C, H, W)`` uint8 -> ``(B, classes)`` float32 logits for ``device``, with its metadata.

    The network is traced on the CPU and moved: traced on a GPU, batch normalisation of cuDNN bounds the batch size.

    Args:
        classifier: the network, on the CPU.
        path: the file.
        device: the device that the program runs on.

    Raises:
        ExportError: the network cannot be traced with a dynamic batch size.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*", FutureWarning)
        try:
            program = torch.export.export(
                FromPixels(classifier).eval(),
                (example(classifier),),
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            )
            if device.type != "cpu":
                program = move_to_device_pass(program, device)
        except Exception as error:  # any error of the tracer
            first = str(error).strip().partition("\n")[0]
            raise ExportError(f"{classifier.name} cannot be written by torch.export: {first}") from error
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # has paths of this machine
        metadata = {key: value if key == "format" else json.loads(value) for key, value in classifier.metadata.items()}
        text = json.dumps(metadata | {"format": FORMAT})
        torch.export.save(program, path, extra_files={METADATA: text})


def read_pt2(path: Path, device: torch.device) -> Run:
    """Load a file as a function of images."""
    with warnings.catch_warnings():  # of older versions of torch, about their own buffers
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        module = torch.export.load(path).module()

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        logits: Tensor = module(images.to(device))
        return logits.cpu()

    return run
