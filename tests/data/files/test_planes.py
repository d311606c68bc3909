"""Images of any number of channels and 16 bits that are kept: against numpy, tifffile and Pillow."""

import sys
from io import BytesIO

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from metamixer.data import load
from metamixer.data.errors import DataError, ImageError
from metamixer.data.files import planes
from metamixer.data.files.image_file import read_header, read_image

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (20, 24, 5), np.uint16)
FLAT = (DEEP >> 8).astype(np.uint8)


def saved(path, array):
    np.save(path, array)
    return path


def content(array):
    file = BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("form", ["last", "first", "bytes", "fortran"])
def test_an_array_is_read_in_either_order(tmp_path, form):
    array = {"first": FLAT.transpose(2, 0, 1), "fortran": np.asfortranarray(FLAT)}.get(form, FLAT)
    source = content(array) if form == "bytes" else saved(tmp_path / "x.npy", array)
    assert read_header(source).size == (20, 24)
    assert read_header(source).channels == 5
    for channels in (None, 5):
        assert np.array_equal(read_image(source, channels), FLAT.transpose(2, 0, 1))
    with pytest.raises(ImageError, match=r"has 5 channels; data\.channels=3 is asked for"):
        read_image(source, 3)


def test_arrays_of_one_and_three_channels_are_as_pictures_are(tmp_path):
    colour = FLAT[..., :3]
    Image.fromarray(colour).save(tmp_path / "x.png")
    Image.fromarray(FLAT[..., 0]).save(tmp_path / "g.png")
    for size in (None, (9, 11), (40, 20)):
        for channels in (1, 3):
            for name, array in (("x", colour), ("g", FLAT[..., 0])):
                found = read_image(saved(tmp_path / "x.npy", array), channels, size)
                assert np.array_equal(found, read_image(tmp_path / f"{name}.png", channels, size))


@pytest.mark.parametrize("fit", ["crop", "letterbox", "squash"])
def test_every_plane_is_resized_as_a_grey_picture(tmp_path, fit):
    path = saved(tmp_path / "x.npy", FLAT)
    found = read_image(path, size=(8, 16), fit=fit)
    for plane, other in zip(FLAT.transpose(2, 0, 1), found, strict=True):
        Image.fromarray(np.ascontiguousarray(plane)).save(tmp_path / "p.png")
        assert np.array_equal(read_image(tmp_path / "p.png", 1, (8, 16), fit=fit)[0], other)

    def box(width, height):
        return 2.5, 1.0, width - 3.0, height - 2.25

    whole = Image.fromarray(np.ascontiguousarray(FLAT[..., 4])).resize((7, 6), Image.Resampling.BILINEAR, box(24, 20))
    assert np.array_equal(read_image(path, size=(6, 7), crop=box)[4], np.asarray(whole))


@pytest.mark.parametrize(
    "options",
    [
        {"planarconfig": "contig"},
        {"planarconfig": "separate"},
        {},
        {"compression": "zlib"},
        {"photometric": "minisblack", "metadata": None},
    ],
    ids=str,
)
def test_tiffs_of_many_channels_are_those_of_tifffile(tmp_path, options):
    array = DEEP if options.get("planarconfig") == "contig" else DEEP.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "x.tif", array, **options)
    deep = read_image(tmp_path / "x.tif", 5, bits=16)
    assert deep.dtype == np.float32
    np.testing.assert_allclose(deep, DEEP.transpose(2, 0, 1) / 257.0, rtol=1e-6)
    wanted = np.floor(DEEP.transpose(2, 0, 1) * 255.0 / 65535 + 0.5).astype(np.uint8)
    assert np.array_equal(read_image(tmp_path / "x.tif", 5), wanted)
    assert np.array_equal(read_image((tmp_path / "x.tif").read_bytes(), 5), wanted)


def test_pages_are_channels_where_so_many_are_asked_for(tmp_path):
    pages = [Image.fromarray(np.ascontiguousarray(plane)) for plane in FLAT.transpose(2, 0, 1)]
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    assert np.array_equal(read_image(tmp_path / "x.tif", 5), FLAT.transpose(2, 0, 1))
    assert np.array_equal(read_image(tmp_path / "x.tif"), FLAT[None, ..., 0])  # the first page, as before
    with pytest.raises(ImageError, match=r"has 5 channels; data\.channels=4"):
        read_image(tmp_path / "x.tif", 4)
    Image.fromarray(FLAT[..., 0]).save(
        tmp_path / "y.tif", save_all=True, append_images=[Image.fromarray(FLAT[:5, :5, 0])]
    )
    with pytest.raises(ImageError, match="page 2 is L of 5 x 5; grey pages of one size"):
        read_image(tmp_path / "y.tif", 2)


def test_sixteen_bits_are_kept_through_resizing(tmp_path):
    grey = DEEP[..., 0]
    Image.fromarray(grey).save(tmp_path / "g.png")
    found = read_image(tmp_path / "g.png", bits=16, white=4095)
    np.testing.assert_allclose(found[0], grey.clip(0, 4095) * 255.0 / 4095, rtol=1e-6)
    small = read_image(tmp_path / "g.png", 1, (10, 12), bits=16)
    wanted = Image.fromarray((grey / 257).astype(np.float32)).resize((12, 10), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(small[0], np.asarray(wanted), atol=1e-3)
    assert len(np.unique(small)) > 110  # of 120: not rounded to 8 bits
    Image.fromarray(FLAT[..., :3]).save(tmp_path / "c.png")
    flat = read_image(tmp_path / "c.png", 3, bits=16)
    assert flat.dtype == np.float32
    assert np.array_equal(flat, FLAT[..., :3].transpose(2, 0, 1))


def test_deep_colour_is_read_by_tifffile_and_refused_where_bits_would_be_lost(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "x.tif", DEEP[..., :3], photometric="rgb")
    np.testing.assert_allclose(
        read_image(tmp_path / "x.tif", 3, bits=16), DEEP[..., :3].transpose(2, 0, 1) / 257.0, rtol=1e-6
    )
    assert read_image(tmp_path / "x.tif", 3).dtype == np.uint8
    deep_png = _png16(DEEP[..., :3])
    assert read_image(deep_png, 3).shape == (3, 20, 24)
    with pytest.raises(ImageError, match="16-bit colour in PNG, of which 8 bits can be read; TIFF and "):
        read_image(deep_png, 3, bits=16)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match=r"needs pip install 'metamixer\[formats\]'"):
        read_image(tmp_path / "x.tif", 3, bits=16)


def _png16(array):
    """Pillow writes no 16-bit colour."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_four_channels_are_those_of_rgba_and_cmyk(tmp_path):
    rgba = np.dstack([FLAT[..., :3], FLAT[..., 4]])
    Image.fromarray(rgba).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png", 4), rgba.transpose(2, 0, 1))
    assert read_image(tmp_path / "x.png", 3).shape == (3, 20, 24)  # on white, as before


@pytest.mark.parametrize(
    ("array", "code", "words"),
    [
        (np.zeros((4, 4), np.float32), "unsupported", r"an array of float32 \(4, 4\); uint8 or uint16"),
        (np.zeros((2, 4, 4, 3), np.uint8), "unsupported", "an array of uint8"),
        (np.zeros((0, 4), np.uint8), "unsupported", "an array of uint8"),
        (np.array([{"a": 1}], dtype=object), "unsupported", "an array of object"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, code, words):
    path = tmp_path / "x.npy"
    np.save(path, array, allow_pickle=True)
    for read in (read_image, read_header):
        with pytest.raises(ImageError, match=words) as caught:
            read(path)
        assert caught.value.code == code


def test_damaged_and_gigantic_arrays(tmp_path):
    whole = content(FLAT)
    for damaged in (whole[:-10], whole[:8], b"\x93NUMPY\x01\x00\xff\xff"):
        with pytest.raises(ImageError):
            read_image(damaged)
    lie = whole.replace(b"(20, 24, 5)", b"(99999, 99, 99)").replace(b"            \n", b"        \n", 1)
    with pytest.raises(ImageError, match=r"too large|damaged"):
        read_header(lie)
    (tmp_path / "x.tif").write_bytes(b"II*\0" + b"\xff" * 40)
    with pytest.raises(ImageError):
        read_image(tmp_path / "x.tif")
    with pytest.raises(ImageError, match="too large"):
        planes.read_array(content(FLAT), "x", 100)


@pytest.mark.parametrize("limit", [2**31, 0])
def test_a_folder_of_arrays_with_16_bits_on_disk_and_in_memory(tmp_path, limit):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(6):
            saved(tmp_path / name / f"{number}.npy", RNG.integers(0, 65536, (20, 24, 5), np.uint16))
    data = load(tmp_path, image_size=(10, 12), bits=16, val_share=0, cache_limit_bytes=limit)
    assert (data.channels, data.size) == (5, (10, 12))
    pixels = data.train.fetch(torch.arange(len(data.train)))
    assert pixels.dtype == data.train.dtype == torch.float32
    values = pixels.double() / 255
    np.testing.assert_allclose(data.mean, values.mean((0, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(data.std, values.std((0, 2, 3), correction=0), atol=1e-9)
    with pytest.raises(DataError, match="scenes are of 8 bits"):
        load(f"scenes:{tmp_path}", bits=16)
    with pytest.raises(DataError, match="fashion-mini has images of 8 bits"):
        load("fashion-mini", channels=5)
    with pytest.raises(DataError, match="bits=12"):
        load(tmp_path, bits=12)
