"""Images as planes, one per channel: arrays, TIFF files with any number of channels, and 16-bit values."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metamixer.data.errors import ImageError

_NUMPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EXTRA = "pip install 'metamixer[formats]'"
Resize = Callable[[Image.Image], Image.Image]


def magic(source: Path | bytes) -> bytes:
    """The first bytes of a file; empty if it cannot be read."""
    if isinstance(source, bytes):
        return source[:32]
    try:
        with source.open("rb") as file:
            return file.read(32)
    except OSError:
        return b""


def is_array(source: Path | bytes) -> bool:
    """Whether the file was written by ``numpy.save``."""
    return magic(source).startswith(_NUMPY)


def is_tiff(source: Path | bytes) -> bool:
    """Whether the file is a TIFF, which Pillow may not be able to read."""
    return magic(source).startswith(_TIFF)


def shape_of_array(source: Path | bytes, name: str, most: int) -> tuple[tuple[int, int, int], bool]:
    """``(C, H, W)`` and whether it has 16 bits, from the header only; see :func:`read_array`."""
    with _opened(source) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except (ValueError, OSError) as error:
            raise ImageError(f"{name}: damaged: {error}") from error
    _check(shape, dtype, name, most)
    return _planes_shape(shape), dtype == np.uint16


def read_array(source: Path | bytes, name: str, most: int) -> NDArray[Any]:
    """Read an array ``(H, W)``, ``(H, W, C)``, or ``(C, H, W)`` with C below H and W as ``(C, H, W)`` uint8 or uint16.

    Args:
        source: a file written by ``numpy.save``. Pickled objects are refused.
        name: name of the image in messages.
        most: the largest accepted number of bytes.

    Raises:
        ImageError: another shape or type, too large, or damaged.
    """
    shape_of_array(source, name, most)
    with _opened(source) as file:
        try:
            return as_planes(np.load(file, allow_pickle=False))
        except (ValueError, OSError, EOFError) as error:
            raise ImageError(f"{name}: damaged: {error}") from error


def planes_of_array(array: NDArray[Any], name: str, most: int) -> NDArray[Any]:
    """:func:`read_array` for an array in memory."""
    _check(array.shape, array.dtype, name, most)
    return as_planes(array)


def as_planes(array: NDArray[Any]) -> NDArray[Any]:
    """``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` -> ``(C, H, W)``."""
    if array.ndim == 2:
        return array[None]
    return array if _first(array.shape) else array.transpose(2, 0, 1)


def read_tiff(source: Path | bytes, name: str, most: int) -> NDArray[Any]:
    """Read the first series of a TIFF as ``(C, H, W)`` uint8 or uint16: the channels are its samples or its pages.

    Raises:
        ImageError: tifffile is not installed, or the image has another type, is too large, or is damaged.
    """
    with _opened(source) as file:
        series = _series(file, name, most)
        try:
            array = series.asarray()
        except Exception as error:  # any error of the decoders
            raise ImageError(f"{name}: damaged: {error}") from error
        return _moved(array, series.axes)


def shape_of_tiff(source: Path | bytes, name: str, most: int) -> tuple[tuple[int, int, int], bool]:
    """``(C, H, W)`` and whether it has 16 bits; see :func:`read_tiff`."""
    with _opened(source) as file:
        series = _series(file, name, most)
        C, H, W = _moved(np.broadcast_to(np.zeros((), np.uint8), series.shape), series.axes).shape
        return (C, H, W), series.dtype == np.uint16


def pages(image: Image.Image) -> int:
    """The number of pages of a TIFF opened by Pillow; 1 for other formats."""
    return int(getattr(image, "n_frames", 1)) if image.format == "TIFF" else 1


def read_pages(image: Image.Image, name: str) -> NDArray[Any]:
    """The grey pages of a TIFF as planes."""
    found: list[NDArray[Any]] = []
    for number in range(pages(image)):
        image.seek(number)
        array = np.asarray(image)
        if array.ndim != 2 or array.dtype not in (np.uint8, np.uint16) or (found and array.shape != found[0].shape):
            raise ImageError(
                f"{name}: page {number + 1} is {image.mode} of {image.width} x {image.height}; grey pages of one size "
                "with 8 or 16 bits are expected",
                "unsupported",
            )
        found.append(array.copy())
    return np.stack(found)


def in_channels(planes: NDArray[Any], channels: int | None, name: str) -> NDArray[Any]:
    """Convert planes to a number of channels: grey is repeated, colour becomes grey by ITU-R BT.601 as in Pillow.

    Raises:
        ImageError: there is no such conversion.
    """
    there = len(planes)
    if channels in (None, there):
        return planes
    if channels == 3 and there == 1:
        return np.repeat(planes, 3, axis=0)
    if channels == 1 and there == 3:
        red, green, blue = planes.astype(np.int64)
        grey: NDArray[Any] = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(planes.dtype)
        return grey[None]
    raise ImageError(f"{name}: has {there} channels; data.channels={channels} is asked for", "unsupported")


def valued(planes: NDArray[Any], white: int, bits: int) -> NDArray[Any]:
    """Convert planes to uint8, or with ``bits=16`` to float32 from 0 to 255; the 16-bit value ``white`` becomes 255."""
    if bits == 16:
        deep = planes.dtype == np.uint16
        return (planes.clip(0, white) * (255 / white)).astype(np.float32) if deep else planes.astype(np.float32)
    if planes.dtype == np.uint16:
        return ((255 * planes.astype(np.int64).clip(0, white) + white // 2) // white).astype(np.uint8)
    return planes


def resized(planes: NDArray[Any], resize: Resize) -> NDArray[Any]:
    """Resize each plane as Pillow resizes grey images of 8 bits or of float values."""
    return np.stack([np.asarray(resize(Image.fromarray(np.ascontiguousarray(plane)))) for plane in planes])


def _opened(source: Path | bytes) -> Any:
    return BytesIO(source) if isinstance(source, bytes) else source.open("rb")


def _check(shape: tuple[int, ...], dtype: Any, name: str, most: int) -> None:
    if dtype not in (np.uint8, np.uint16) or len(shape) not in (2, 3) or not all(shape):
        raise ImageError(
            f"{name}: an array of {dtype} {tuple(shape)}; uint8 or uint16 (H, W), (H, W, C) or (C, H, W) is expected",
            "unsupported",
        )
    if (size := int(np.prod(shape, dtype=np.float64)) * dtype.itemsize) > most:
        raise ImageError(f"{name}: too large: {size:,} bytes; {most:,} are the most", "too-large")


def _first(shape: tuple[int, ...]) -> bool:
    return shape[0] < min(shape[1:])


def _planes_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    return (shape[0], shape[1], shape[2]) if _first(shape) else (shape[2], shape[0], shape[1])


def _series(file: Any, name: str, most: int) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise ImageError(
            f"{name}: a TIFF that Pillow cannot read; one of many or deep channels needs {_EXTRA}", "unsupported"
        ) from error
    try:
        series = tifffile.TiffFile(file).series[0]
    except Exception as error:
        raise ImageError(f"{name}: not an image of a known format: {error}", "not-an-image") from error
    if series.dtype not in (np.uint8, np.uint16) or "Y" not in series.axes or "X" not in series.axes:
        raise ImageError(
            f"{name}: a TIFF of {series.dtype} with axes {series.axes}; uint8 or uint16 are expected", "unsupported"
        )
    if (size := int(np.prod(series.shape, dtype=np.float64)) * series.dtype.itemsize) > most:
        raise ImageError(f"{name}: too large: {size:,} bytes; {most:,} are the most", "too-large")
    return series


def _moved(array: NDArray[Any], axes: str) -> NDArray[Any]:
    y, x = axes.index("Y"), axes.index("X")
    moved = np.moveaxis(array, (y, x), (-2, -1))
    return moved.reshape(-1, *moved.shape[-2:])
