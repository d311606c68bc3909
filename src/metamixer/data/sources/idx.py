"""Read the four gzipped files of Fashion-MNIST; torchvision only reads unpacked files."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metamixer.data.errors import DataError

FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read the uint8 array of an idx file.

    Args:
        path: the file; decompressed if its name ends in ``.gz``.
        dimensions: required number of dimensions: 3 for images, 1 for labels.

    Raises:
        DataError: the file is damaged; the message names the position, what was expected and what was found.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes([0, 0, 8, dimensions]):
                raise DataError(
                    f"{path}: at byte 0, expected an idx header of {dimensions} dimensions of unsigned bytes "
                    f"({bytes([0, 0, 8, dimensions]).hex()}), found {head[:4].hex() or 'nothing'}"
                )
            shape = struct.unpack(f">{dimensions}I", head[4:])
            length = int(np.prod(shape, dtype=np.float64))
            if length > 2**32:
                raise DataError(f"{path}: at byte 4, sizes {shape} promise {length} bytes; 2^32 are the most")
            content = file.read(length + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if len(content) != length:
        expected = "the end" if len(content) > length else f"{length - len(content)} more bytes"
        position = len(head) + min(len(content), length)
        raise DataError(f"{path}: at byte {position}, expected {expected} for sizes {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()
