"""Decode image files strictly: files that cannot be decoded correctly are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from metamixer.core.text import clean
from metamixer.data.errors import ImageError
from metamixer.data.files import planes
from metamixer.data.files.memory_budget import Room
from metamixer.data.files.picture import MAX_BYTES, MAX_PIXELS, Source, cause, has_16_bits, open_picture
from metamixer.data.image_set import BARS

Box = tuple[float, float, float, float]
Crop = Callable[[int, int], Box]
"""(width, height) -> (left, top, right, bottom) of the part to cut out."""

Fit = Literal["crop", "letterbox", "squash"]
"""How an image is fitted to the aspect ratio of a size: ``crop`` keeps the largest centred part, ``letterbox`` adds
grey bars, ``squash`` changes the aspect ratio."""
WHITE = 65535
# A PNG of uniform pixels is compressed to a thousandth: without a joint limit of all threads, files of 200 kB could
# fill the memory.
_ROOM = Room(MAX_PIXELS)
SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"]
) | {".avif", ".heic", ".heif", ".npy"}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
GREY_MODES = ("1", "L", "LA", "La")


@dataclass(frozen=True)
class Header:
    """The header of an image file: height and width (upright), channels, and whether it has 16 bits."""

    size: tuple[int, int]
    channels: int
    sixteen: bool = False


def read_header(source: Source, name: str = "image") -> Header:
    """The size and channels of an image, without decoding it. For the arguments see :func:`read_image`.

    Raises:
        ImageError: as in :func:`read_image`, as far as the header shows the error.
    """
    name = clean(source) if isinstance(source, Path) else name
    if isinstance(source, np.ndarray):
        found = planes.planes_of_array(source, name, MAX_BYTES)
        return Header((found.shape[1], found.shape[2]), len(found), found.dtype == np.uint16)
    if (kind := _kind(source, name)) != "picture":
        look = planes.shape_of_array if kind == "array" else planes.shape_of_tiff
        (channels, high, wide), sixteen = look(source, name, MAX_BYTES)  # type: ignore[arg-type]
        return Header((high, wide), channels, sixteen)
    with open_picture(source, name) as image:
        width, height = image.size
        upright = (width, height) if _orientation(image) >= 5 else (height, width)
        try:
            return Header(upright, 1 if _grey(image) else 3, has_16_bits(image))
        except Exception as error:  # a damaged palette
            raise ImageError(f"{name}: damaged: {cause(error)}") from error


def read_image(
    source: Source,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    crop: Crop | None = None,
    name: str = "image",
    *,
    fit: Fit = "crop",
    white: int = WHITE,
    bits: int = 8,
) -> NDArray[Any]:
    """Read an image as an array.

    Palette, CMYK, 1-bit and other modes are converted to grey or RGB; transparent pixels are blended with white; the
    EXIF orientation is applied; the first frame of an animation is used; 16-bit grey is converted to 8 bits. If
    ``channels`` is neither 1 nor 3, the channels are those of an array (``.npy``) or a TIFF, the pages of a TIFF, or
    RGBA or CMYK.

    Two lines of Pillow do the same, so that a network gets the same pixels without this package. Therefore JPEGs are
    decoded in full resolution, although a reduced scale is faster for large images.

    Args:
        source: the file, its content, or a Pillow image.
        channels: number of channels; None: that of the image.
        size: height and width to resize to (bilinear, antialiased). None: no resizing.
        name: name of the image in messages, if it is not a file.
        crop: chooses the part that is resized; None: according to ``fit``.
        fit: how the image is fitted to the aspect ratio of ``size``.
        white: the 16-bit value that is mapped to 255, like all larger values.
        bits: 8, or 16 to keep the precision of 16-bit files.

    Returns:
        ``(C, H, W)`` uint8, or with ``bits=16`` float32 from 0 to 255.

    Raises:
        ImageError: the file is missing, not a regular file, empty, not an image, damaged, larger than 64 million pixels
            or 256 million bytes, or has 32-bit or float pixels, whose range is unknown. The message names file and
            cause.
    """
    name = clean(source) if isinstance(source, Path) else name
    kind = _kind(source, name)
    if kind != "picture" or bits == 16 or channels not in (None, 1, 3):
        return _read_planes(source, kind, channels, size, crop, name, fit, white, bits)
    with open_picture(source, name) as image:
        try:
            turn = _orientation(image)
            width, height = image.size[::-1] if turn >= 5 else image.size
            with _ROOM.taken(width * height):
                image.load()
                plain = _plain(image.transpose(TURNS[turn]) if turn in TURNS else image, channels, white)
                if size is not None:
                    plain = _resize(plain, size, crop, fit)
                pixels = np.array(plain, dtype=np.uint8)
                image.close()  # frees the pixels while their memory is still reserved
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{name}: not enough memory to decode it", "too-large") from error
        except Exception as error:  # decoders of Pillow raise many types of exceptions for damaged files
            raise ImageError(f"{name}: damaged: {cause(error)}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _read_planes(
    source: Source,
    kind: str,
    channels: int | None,
    size: tuple[int, int] | None,
    crop: Crop | None,
    name: str,
    fit: Fit,
    white: int,
    bits: int,
) -> NDArray[Any]:
    """:func:`read_image` for all images other than 8-bit pictures with 1 or 3 channels."""
    header = read_header(source, name)
    with _ROOM.taken(header.size[0] * header.size[1] * max(1, (channels or header.channels) // 3)):
        try:
            found = _planes(source, kind, channels, name, bits)
            found = planes.valued(planes.in_channels(found, channels, name), white, bits)
            if size is not None:
                found = planes.resized(found, lambda plane: _resize(plane, size, crop, fit))
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{name}: not enough memory to decode it", "too-large") from error
        except Exception as error:  # as for pictures
            raise ImageError(f"{name}: damaged: {cause(error)}") from error
    return np.ascontiguousarray(found)


def _planes(source: Source, kind: str, channels: int | None, name: str, bits: int) -> NDArray[Any]:
    """``(C, H, W)`` uint8 or uint16, upright."""
    if isinstance(source, np.ndarray):
        return planes.planes_of_array(source, name, MAX_BYTES)
    if kind != "picture":
        read = planes.read_array if kind == "array" else planes.read_tiff
        return read(source, name, MAX_BYTES)  # type: ignore[arg-type]
    with open_picture(source, name) as image:
        if bits == 16 and _loses_bits(image):
            if image.format == "TIFF" and isinstance(source, Path | bytes):
                return planes.read_tiff(source, name, MAX_BYTES)
            raise ImageError(
                f"{name}: 16-bit colour in {image.format}, of which 8 bits can be read; TIFF and .npy files keep them, "
                "data.bits=8 reads it",
                "unsupported",
            )
        if planes.pages(image) > 1 and channels not in (None, 1, 3):
            return planes.read_pages(image, name)
        turn = _orientation(image)
        image.load()
        upright = image.transpose(TURNS[turn]) if turn in TURNS else image
        if upright.mode.startswith("I"):
            return np.asarray(upright).clip(0, WHITE).astype(np.uint16)[None]
        if not (channels == 4 and upright.mode in ("RGBA", "CMYK")):
            upright = _plain(upright, None, WHITE)
        return planes.as_planes(np.array(upright, dtype=np.uint8))


def _loses_bits(image: Image.Image) -> bool:
    """Whether Pillow reads only 8 of 16 bits, as in colour images; the raw mode of its decoder shows it."""
    return not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _kind(source: Source, name: str) -> Literal["picture", "array", "tiff"]:
    """How an image is read: by Pillow, as an array, or as a TIFF that Pillow cannot read."""
    if isinstance(source, np.ndarray):
        return "array"
    if isinstance(source, Image.Image):
        return "picture"
    if isinstance(source, Path) and source.suffix.lower() not in (".npy", ".tif", ".tiff"):
        return "picture"
    if planes.is_array(source):
        return "array"
    if planes.is_tiff(source):
        try:
            open_picture(source, name).close()
        except ImageError as error:
            if error.code == "not-an-image":
                return "tiff"
    return "picture"


def largest_value(source: Source, name: str = "image") -> int:
    """The largest value in a 16-bit image. For the arguments see :func:`read_image`."""
    name = clean(source) if isinstance(source, Path) else name
    if (kind := _kind(source, name)) != "picture":
        return int(_planes(source, kind, None, name, 16).max())
    with open_picture(source, name) as image, _ROOM.taken(image.width * image.height):
        try:
            return int(np.asarray(image).max())
        except Exception as error:
            raise ImageError(f"{name}: damaged: {cause(error)}") from error


def _orientation(image: Image.Image) -> int:
    # For a PNG without EXIF in its header getexif() would decode the file, because the entry may be at its end.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        turn = image.getexif().get(0x0112, 1)
    except Exception:  # damaged metadata do not damage the pixels
        return 1
    return turn if isinstance(turn, int) and turn in TURNS else 1


def _grey(image: Image.Image) -> bool:
    if image.mode == "P" and (palette := image.getpalette()) is not None:
        colours = np.array(palette).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in GREY_MODES or image.mode.startswith("I")


def _plain(image: Image.Image, channels: int | None, white: int) -> Image.Image:
    """The image in mode L or RGB."""
    mode = {1: "L", 3: "RGB", None: "L" if _grey(image) else "RGB"}[channels]
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64).clip(0, white)
        image = Image.fromarray(((255 * values + white // 2) // white).astype(np.uint8))
    if image.has_transparency_data:
        image = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, size: tuple[int, int], crop: Crop | None, fit: Fit) -> Image.Image:
    bilinear, (height, width) = Image.Resampling.BILINEAR, size
    if crop is None and fit == "letterbox":
        bars = BARS if image.mode == "L" else (BARS,) * 3
        return ImageOps.pad(image, (width, height), bilinear, color=bars)
    whole = (0.0, 0.0, float(image.width), float(image.height))
    box = crop(*image.size) if crop is not None else whole if fit == "squash" else _centre(image.size, size)
    if (image.height, image.width) == size and box == whole:
        return image
    return image.resize((width, height), bilinear, box=box)


def _centre(full: tuple[int, int], size: tuple[int, int]) -> Box:
    """The largest centred part with the aspect ratio of ``size``, in an image of ``full`` width and height.

    Images are cropped before they are resized: otherwise an image of 5000 x 1 would be enlarged to a quarter of a
    gigapixel on its way to 224 x 224.
    """
    width, height = full
    scale = min(height / size[0], width / size[1])
    w, h = min(width, size[1] * scale), min(height, size[0] * scale)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2
