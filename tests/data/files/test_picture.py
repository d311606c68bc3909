"""What is opened and what is refused before anything is decoded."""

import struct
import sys
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from metamixer.data import ImageError, read_header, read_image
from metamixer.data.files import picture
from metamixer.data.files.picture import MAX_PIXELS


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width, height):
    """A PNG of a hundred bytes that promises any number of pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def written(pixels):
    output = BytesIO()
    Image.fromarray(pixels).save(output, "TIFF")
    return output.getvalue()


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(kind):
    with pytest.raises(ImageError, match="range is unknown") as caught:
        read_image(written(np.ones((6, 9), kind)))
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize("side", [10_000, 20_000, 2_000_000])
def test_bombs_are_refused_by_their_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    tracemalloc.start()
    for call in (read_image, read_header):
        with pytest.raises(ImageError, match=f"{MAX_PIXELS:,} pixels") as caught:
            call(path)
        assert caught.value.code == "too-large"
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_heic_and_avif(tmp_path, monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif")
    ramp = np.linspace(0, 255, 64)[None, :, None] * np.linspace(0.2, 1, 48)[:, None, None]
    smooth = np.repeat(ramp.round().astype(np.uint8), 3, axis=2)
    pillow_heif.register_heif_opener()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # read by pi_heif, which cannot write
    picture.formats.cache_clear()
    assert "HEIF" in picture.formats()
    for name in ("x.heic", "x.avif"):
        Image.fromarray(smooth).save(tmp_path / name, quality=95)
        found = read_image(tmp_path / name, 3)
        assert found.shape == (3, 48, 64)
        assert np.abs(found.transpose(1, 2, 0).astype(int) - smooth).max() < 12
    monkeypatch.setattr(picture, "formats", lambda: picture.FORMATS)
    for name, kind in (("x.heic", "HEIC"), ("x.avif", "AVIF")):
        with pytest.raises(ImageError, match=rf"{kind}, which needs pip install 'metamixer\[formats\]'") as caught:
            read_image(tmp_path / name)
        assert caught.value.code == "unsupported"
