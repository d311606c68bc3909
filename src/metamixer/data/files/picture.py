"""Open pictures with Pillow, and refuse unsafe or unsupported ones before they are decoded."""

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
# A header may declare a block of any length, and Pillow reads all of it before it reports the size of the image: a
# (sparse) file of 2 GB took 6 GB of memory. MAX_BYTES is the size of MAX_PIXELS uncompressed pixels.
MAX_BYTES = 4 * MAX_PIXELS
# An explicit list, because Pillow recognises formats by content and would run Ghostscript for PostScript named x.jpg.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
_BOXES = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC"}
"""Names of formats by the brand in the first box of the file."""


@cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow may open: AVIF if Pillow supports it, HEIC if a plug-in is installed."""
    found = [*FORMATS, *(["AVIF"] if features.check("avif") else [])]
    for plugin in ("pi_heif", "pillow_heif"):  # the same reader; the second can also write, and its wheels are GPL
        with suppress(ImportError):
            import_module(plugin).register_heif_opener()
            found.append("HEIF")
            break
    return tuple(found)


def open_picture(source: Source, name: str) -> Image.Image:
    """Open an image without decoding its pixels; ``ImageError`` says why it cannot be read."""
    if isinstance(source, Image.Image):
        return checked(source.copy(), name)  # a copy, because callers close the result
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
        if isinstance(error, OSError) and error.strerror:  # from the system; errors of Pillow have no strerror
            raise ImageError(f"{name}: cannot be read: {error.strerror}", "unreadable") from error
        raise ImageError(f"{name}: damaged: {cause(error)}") from error
    return checked(image, name)


def checked(image: Image.Image, name: str) -> Image.Image:
    """The image itself; ``ImageError`` if it is too large or the range of its pixels is unknown."""
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
    """Whether Pillow returns 16-bit values for this image."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def cause(error: Exception) -> str:
    """The message of an exception, or its type if it has none."""
    return str(error) or type(error).__name__
