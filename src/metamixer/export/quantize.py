"""Int8 quantisation of an ONNX file, calibrated on real images, and its cost in accuracy."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamixer.core.progress import watched
from metamixer.core.seeding import generator
from metamixer.data import ImageSet
from metamixer.export.errors import ExportError, need
from metamixer.export.onnx_file import describe, read_onnx

# Operations with a faster integer kernel. The end of an ensemble (logarithms and a mean of probabilities) remains in
# float32: 8 bits for log-probabilities would reduce accuracy and save nothing.
_OPERATIONS = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool")
_BATCH = 16


@dataclass(frozen=True)
class Quantised:
    """Comparison of the float file and the int8 file on the same images.

    Args:
        path: the int8 file.
        split: split of the images.
        images: number of images.
        accuracy, accuracy_int8: accuracies of both files, in [0, 1].
        agreement: share of images for which both predict the same class.
        kib, kib_int8: sizes of both files in KiB.
        calibrated: number of training images for the ranges.
    """

    path: Path
    split: str
    images: int
    accuracy: float
    accuracy_int8: float
    agreement: float
    kib: float
    kib_int8: float
    calibrated: int


class _Reader:
    """Batches of images for the calibration of ONNX Runtime."""

    def __init__(self, pixels: Tensor) -> None:
        self._parts: Iterator[Tensor] = iter(torch.split(pixels, _BATCH))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self._parts, None)
        return None if part is None else {"images": part.numpy()}


def calibration_images(images: ImageSet, count: int, seed: int) -> Tensor:
    """Draw ``count`` training images ``(count, C, H, W)`` without replacement, by a seed."""
    order = torch.randperm(len(images), generator=generator(seed, "calibrate"))
    return images.fetch(order[:count]).cpu()


def quantise(float_path: Path, path: Path, pixels: Tensor) -> None:
    """Quantise ``float_path`` to 8-bit weights (with a scale per channel) and activations, in the QDQ format.

    Uses static quantisation of ONNX Runtime: the ranges of activations are the smallest and largest values for
    ``pixels``; weights and activations are signed, as its documentation recommends.

    Raises:
        RecipeError: onnxruntime is not installed.
        ExportError: ONNX Runtime cannot quantise the network.
    """
    need("export", "onnx", "onnxruntime")
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    CalibrationDataReader.register(_Reader)  # an abstract class without code to inherit
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        try:
            # Symbolic shape inference is for transformers with unknown shapes; here all shapes are known.
            quant_pre_process(str(float_path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(path),
                _Reader(pixels),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(_OPERATIONS),
            )
        except Exception as error:  # any error of its passes
            raise ExportError(f"{float_path.name} cannot be quantised: {error}") from error
    metadata = {entry.key: entry.value for entry in onnx.load(str(float_path)).metadata_props}
    model = onnx.load(str(path))
    describe(model, metadata)
    onnx.save_model(model, str(path))


def compare(float_path: Path, path: Path, split: str, images: ImageSet, calibrated: int) -> Quantised:
    """Run both files on all images and compare them."""
    cpu = torch.device("cpu")
    plain, small = read_onnx(float_path, cpu), read_onnx(path, cpu)
    right = right_int8 = same = 0
    for chosen in watched(torch.split(torch.arange(len(images)), 64), "comparing with int8"):
        pixels, labels = images.fetch(chosen).cpu(), images.labels[chosen]
        first, second = plain(pixels).argmax(-1), small(pixels).argmax(-1)
        right += int((first == labels).sum())
        right_int8 += int((second == labels).sum())
        same += int((first == second).sum())
    sizes = [one.stat().st_size / 1024 for one in (float_path, path)]
    n = len(images)
    return Quantised(path, split, n, right / n, right_int8 / n, same / n, sizes[0], sizes[1], calibrated)
