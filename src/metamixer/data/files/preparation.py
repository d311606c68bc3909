"""Preparation of images for a network, the same in training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metamixer.data.errors import ImageError
from metamixer.data.files.image_file import WHITE, Fit, read_image

ImageInput = str | Path | bytes | Image.Image | NDArray[Any] | Tensor
"""A file, its content, a Pillow image, an array ``(H, W)`` or ``(H, W, C)``, or a tensor ``(C, H, W)``."""


@dataclass(frozen=True)
class Preparation:
    """Converts images to the input of a network; for the settings see :func:`metamixer.data.read_image`."""

    channels: int
    size: tuple[int, int]
    fit: Fit = "crop"
    white: int = WHITE
    bits: int = 8

    def __call__(self, image: ImageInput, name: str = "image") -> Tensor:
        """Convert one image to ``(C, H, W)`` uint8, or with 16 bits to float32 from 0 to 255.

        Raises:
            ImageError: the image cannot be read, or the argument is not an image.
        """
        source = Path(image) if isinstance(image, str) else image
        if isinstance(source, Tensor | np.ndarray):
            source = _from_array(source, self.channels, name)
        if not isinstance(source, Path | bytes | Image.Image | np.ndarray):
            raise ImageError(
                f"{name} is of {type(image).__name__}; a path, bytes, an image of Pillow, an array or a tensor is "
                "accepted",
                "unsupported",
            )
        found = read_image(source, self.channels, self.size, name=name, fit=self.fit, white=self.white, bits=self.bits)
        return torch.from_numpy(found)


def _from_array(given: NDArray[Any] | Tensor, channels: int, name: str) -> Image.Image | NDArray[Any]:
    """A Pillow image if possible, so that the result is the same as for a file; otherwise an array of planes."""
    array = given.permute(1, 2, 0).cpu().numpy() if isinstance(given, Tensor) and given.ndim == 3 else np.asarray(given)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.size and array.dtype in (np.uint8, np.uint16) and array.ndim in (2, 3)
    if not fits or (array.ndim == 3 and array.shape[2] not in (3, 4, channels)):
        kind = "tensor" if isinstance(given, Tensor) else "array"
        shape = "(C, H, W)" if kind == "tensor" else "(H, W) or (H, W, C)"
        raise ImageError(
            f"{name} is {'a' if kind == 'tensor' else 'an'} {kind} of {array.dtype} {tuple(given.shape)}; uint8 or "
            f"uint16 {shape} with {', '.join(map(str, sorted({1, 3, 4, channels})))} channels is accepted",
            "unsupported",
        )
    if array.ndim == 2 or (array.shape[2] in (3, 4) and array.dtype == np.uint8):
        return Image.fromarray(np.ascontiguousarray(array))
    return array


def each(images: Any) -> list[ImageInput]:
    """One image or several, as a list."""
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if isinstance(images, Tensor | np.ndarray):
        several = images.ndim == 4
        return list(images) if several else [images]
    return list(images) if isinstance(images, Iterable) else [images]


def is_one(images: Any) -> bool:
    """Whether the argument is a single image."""
    return isinstance(images, str | Path | bytes | Image.Image) or (
        isinstance(images, Tensor | np.ndarray) and images.ndim < 4
    )
