"""Open pictures with Pillow, and refuse unsafe or mislabelled ones before decoding."""

from __future__ import annotations

import stat
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from metamixer.data.errors import ImageError
from metamixer.data.files.planes import magic

Source = Path | bytes | Image.Image | NDArray[Any]
MAX_PIXELS = 64_000_000
# A header may name a block of any length, and Pillow reads it whole before it says how large the image is: a file of
# 2 GB, which need not take any room on a disk, took 6 GB of memory. So many bytes hold MAX_PIXELS uncompressed.
MAX_BYTES = 4 * MAX_PIXELS
# Named one by one, because Pillow goes by content and would start Ghostscript for PostScript called x.jpg.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_BOXES = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC"}
"""Formats by the brand in their first box."""


@cache
def formats() -> tuple[str, ...]:
    """What Pillow may open here: AVIF is a part of it, HEIC that of a plug-in."""
    found = [*FORMATS, *(["AVIF"] if features.check("avif") else [])]
    for plugin in ("pi_heif", "pillow_heif"):  # the same reader; the second also writes, and its wheels are GPL
        with suppress(ImportError):
            import_module(plugin).register_heif_opener()
            found.append("HEIF")
            break
    return tuple(found)


def open_picture(source: Source, name: str) -> Image.Image:
    """The image, its pixels still undecoded; ``ImageError`` says why it cannot be read."""
    if isinstance(source, Image.Image):
        return checked(source.copy(), name)  # what is handed in is not closed here
    assert not isinstance(source, np.ndarray)  # noqa: S101
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
        image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=formats())
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file, or a link to none", "missing") from error
    except UnidentifiedImageError as error:
        first = magic(source)
        if (boxed := _BOXES.get(first[8:12])) and first[4:8] == b"ftyp":
            needed = f"{name}: {boxed}, which needs pip install 'metamixer[formats]'"
            raise ImageError(needed, "unsupported") from error
        raise ImageError(f"{name}: not an image of a known format ({', '.join(formats())})", "not-an-image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name}: too large: {MAX_PIXELS:,} pixels are the most", "too-large") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # from the system; Pillow's own have no number
            raise ImageError(f"{name}: cannot be read: {error.strerror}", "unreadable") from error
        raise ImageError(f"{name}: damaged: {cause(error)}") from error
    return checked(image, name)


def checked(image: Image.Image, name: str) -> Image.Image:
    """The image itself; ``ImageError`` if it is too large or has pixels of no known range."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{name}: too large: {width} x {height}; {MAX_PIXELS:,} pixels are the most", "too-large")
    if image.mode == "F" or (image.mode.startswith("I") and not has_16_bits(image)):
        image.close()
        raise ImageError(
            f"{name}: 32-bit or float pixels ({image.mode}), whose range is unknown; expected 8 or 16 bits",
            "unsupported",
        )
    return image


def has_16_bits(image: Image.Image) -> bool:
    """Whether Pillow gives its values with 16 bits."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def cause(error: Exception) -> str:
    """The message of an error."""
    return str(error) or type(error).__name__
