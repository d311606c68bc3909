"""Decode image files strictly: what cannot be decoded faithfully is refused."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from metamixer.core.text import clean
from metamixer.data.errors import ImageError
from metamixer.data.files.memory_budget import Room
from metamixer.data.image_set import BARS

Source = Path | bytes | Image.Image
Box = tuple[float, float, float, float]
Crop = Callable[[int, int], Box]
"""(width, height) -> (left, top, right, bottom), the part to cut out."""

Fit = Literal["crop", "letterbox", "squash"]
"""How an image comes to the proportions of a size: ``crop`` keeps the largest centred part, ``letterbox`` all of it
with grey bars beside, ``squash`` all of it with other proportions."""
WHITE = 65535
MAX_PIXELS = 64_000_000
# A header may name a block of any length, and Pillow reads it whole before it says how large the image is: a file of
# 2 GB, which need not take any room on a disk, took 6 GB of memory. So many bytes hold MAX_PIXELS uncompressed.
MAX_BYTES = 4 * MAX_PIXELS
# Uniform pixels shrink to a thousandth as a PNG: without a limit for all threads, files of 200 kB would fill a memory.
_ROOM = Room(MAX_PIXELS)
SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"]
)
# Named one by one, because Pillow goes by content and would start Ghostscript for PostScript called x.jpg.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
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
    """What a file says of itself before it is decoded: height, width (upright) and 1 or 3 channels."""

    size: tuple[int, int]
    channels: int
    sixteen: bool = False


def read_header(source: Source, name: str = "image") -> Header:
    """The size and channels of an image, without decoding it. For the arguments see :func:`read_image`.

    Raises:
        ImageError: as :func:`read_image`, as far as the header shows it.
    """
    name = clean(source) if isinstance(source, Path) else name
    with _open(source, name) as image:
        width, height = image.size
        upright = (width, height) if _orientation(image) >= 5 else (height, width)
        try:
            return Header(upright, 1 if _grey(image) else 3, _sixteen(image))
        except Exception as error:  # of the palette
            raise ImageError(f"{name}: damaged: {_cause(error)}") from error


def read_image(
    source: Source,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    crop: Crop | None = None,
    name: str = "image",
    *,
    fit: Fit = "crop",
    white: int = WHITE,
) -> NDArray[np.uint8]:
    """An image as pixels.

    Palette, CMYK, 1-bit and other modes become grey or RGB; transparency is laid on white; the EXIF
    orientation is applied; of an animation the first frame is taken; 16-bit grey becomes 8-bit.

    All that Pillow, as anybody has it, does in two lines, so that a network gets the same pixels without this package:
    JPEGs are decoded in full, although a reduced scale would be faster for large ones.

    Args:
        source: the file, its content, or an image of Pillow.
        channels: 1, 3, or None for what the image has.
        size: height and width to resize to (bilinear, antialiased). None: as it is.
        name: what to call it in messages, if it is no file.
        crop: chooses the part that is resized; None: as ``fit`` says.
        fit: how the image comes to the proportions of ``size``.
        white: the 16-bit value that becomes 255; values above it become 255, too.

    Returns:
        ``(C, H, W)`` uint8.

    Raises:
        ImageError: names the file and the cause: missing, no file, empty, not an image, more than 64 million
            pixels or 256 million bytes, 32-bit or float pixels (their range is unknown), or damaged.
    """
    name = clean(source) if isinstance(source, Path) else name
    with _open(source, name) as image:
        try:
            turn = _orientation(image)
            width, height = image.size[::-1] if turn >= 5 else image.size
            with _ROOM.taken(width * height):
                image.load()
                plain = _plain(image.transpose(TURNS[turn]) if turn in TURNS else image, channels, white)
                if size is not None:
                    plain = _resize(plain, size, crop, fit)
                pixels = np.array(plain, dtype=np.uint8)
                image.close()  # the file's pixels go while the room is still held
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(f"{name}: not enough memory to decode it", "too-large") from error
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            raise ImageError(f"{name}: damaged: {_cause(error)}") from error
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def largest_value(source: Source, name: str = "image") -> int:
    """The largest value in a 16-bit image. For the arguments see :func:`read_image`."""
    name = clean(source) if isinstance(source, Path) else name
    with _open(source, name) as image, _ROOM.taken(image.width * image.height):
        try:
            return int(np.asarray(image).max())
        except Exception as error:
            raise ImageError(f"{name}: damaged: {_cause(error)}") from error


def _open(source: Source, name: str) -> Image.Image:
    if isinstance(source, Image.Image):
        return _checked(source.copy(), name)  # what is handed in is not closed here
    try:
        if isinstance(source, Path):
            mode, length = source.stat().st_mode, source.stat().st_size
            if not stat.S_ISREG(mode):
                folder = stat.S_ISDIR(mode)
                what = "a folder" if folder else "a device or pipe"
                raise ImageError(f"{name}: {what}, not a file", "folder" if folder else "special")
        else:
            length = len(source)
        if not length:
            raise ImageError(f"{name}: empty, 0 bytes", "empty")
        if length > MAX_BYTES:
            raise ImageError(f"{name}: too large: {length:,} bytes; {MAX_BYTES:,} are the most", "too-large")
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file, or a link to none", "missing") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image of a known format ({', '.join(FORMATS)})", "not-an-image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too large: {MAX_PIXELS:,} pixels are the most", "too-large") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # from the system; Pillow's own have no number
            raise ImageError(f"{name}: cannot be read: {error.strerror}", "unreadable") from error
        raise ImageError(f"{name}: damaged: {_cause(error)}") from error
    return _checked(image, name)


def _checked(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{name}: too large: {width} x {height}; {MAX_PIXELS:,} pixels are the most", "too-large")
    if image.mode == "F" or (image.mode.startswith("I") and not _sixteen(image)):
        image.close()
        raise ImageError(
            f"{name}: 32-bit or float pixels ({image.mode}), whose range is unknown; expected 8 or 16 bits",
            "unsupported",
        )
    return image


def _cause(error: Exception) -> str:
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    # Asking a PNG without EXIF would decode it, because the entry may come last.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        turn = image.getexif().get(0x0112, 1)
    except Exception:  # the pixels are whole where what is said about them is damaged
        return 1
    return turn if isinstance(turn, int) and turn in TURNS else 1


def _sixteen(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _grey(image: Image.Image) -> bool:
    if image.mode == "P" and (palette := image.getpalette()) is not None:
        colours = np.array(palette).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in GREY_MODES or image.mode.startswith("I")


def _plain(image: Image.Image, channels: int | None, white: int) -> Image.Image:
    """Mode L or RGB."""
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
    """The largest centred part of the proportions of ``size``, in an image of ``full`` width and height.

    Cut out first and resized then: the other way round, an image of 5000 x 1 would be blown up to a quarter
    of a gigapixel on its way to 224 x 224.
    """
    width, height = full
    scale = min(height / size[0], width / size[1])
    w, h = min(width, size[1] * scale), min(height, size[0] * scale)
    return (width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2
