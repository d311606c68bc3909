"""Odd, damaged and dangerous image files: right pixels or a refusal with its cause, never silently black."""

import os
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from metamixer.data import ImageError, read_header, read_image

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 9), np.uint8)
SMOOTH = np.stack([np.add.outer(np.arange(32) * 3, np.arange(32) * 4)] * 3, -1).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    output = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(output, kind, **options)
    return output.getvalue()


def hwc(image):
    return image.transpose(1, 2, 0)


def test_plain_png_is_exact():
    assert np.array_equal(hwc(read_image(encoded(COLOUR))), COLOUR)
    assert np.array_equal(read_image(encoded(GREY))[0], GREY)
    assert np.array_equal(read_image(encoded(GREY), channels=3), np.stack([GREY] * 3))
    assert np.array_equal(read_image(encoded(COLOUR), 1)[0], np.array(Image.fromarray(COLOUR).convert("L")))
    assert read_image(encoded(COLOUR)).flags.c_contiguous


@pytest.mark.parametrize(("kind", "mode"), [("BMP", "RGB"), ("TIFF", "RGB"), ("PPM", "RGB"), ("WEBP", "RGB")])
def test_other_formats_without_loss_are_exact(kind, mode):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(hwc(read_image(encoded(COLOUR, kind, **options))), COLOUR)


def test_jpeg_and_cmyk_are_near():
    for image in (Image.fromarray(SMOOTH), Image.fromarray(SMOOTH).convert("CMYK")):
        pixels = hwc(read_image(encoded(image, "JPEG", quality=100, subsampling=0)))
        assert np.abs(pixels.astype(int) - SMOOTH).max() <= 3


def test_palette_and_one_bit():
    image = Image.fromarray(COLOUR).quantize(4)
    assert np.array_equal(hwc(read_image(encoded(image))), np.array(image.convert("RGB")))
    assert np.array_equal(read_image(encoded(Image.fromarray(GREY > 99)))[0], np.where(GREY > 99, 255, 0))


def on_white(pixels, alpha):
    share = alpha[..., None].astype(np.float64) / 255
    return share * pixels + (1 - share) * 255


def test_transparency_is_laid_on_white():
    alpha = RNG.integers(0, 256, GREY.shape, np.uint8)
    want = on_white(COLOUR, alpha)
    assert np.abs(hwc(read_image(encoded(np.dstack([COLOUR, alpha])))) - want).max() <= 1
    both = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    assert np.abs(read_image(encoded(both)) - on_white(GREY[..., None], alpha)[..., 0]).max() <= 1


def test_palette_with_transparency_is_laid_on_white():
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    pixels = hwc(read_image(encoded(image, transparency=0)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 3].tolist() == [10, 20, 30]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = Image.fromarray(SMOOTH[:16])
    turns = {1: [], 2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}[orientation]  # how a camera stored it
    stored = image
    for turn in turns:
        stored = stored.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, "JPEG", quality=100, subsampling=0, exif=exif)
    assert read_header(content).size == (16, 32)
    assert np.abs(hwc(read_image(content)).astype(int) - SMOOTH[:16]).max() <= 3
    small = hwc(read_image(content, size=(8, 16)))
    assert np.abs(small.astype(int) - np.array(image.resize((16, 8), Image.Resampling.BILINEAR))).max() <= 6


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert hwc(read_image(content, 3))[2, 2].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_and_not_saturated():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        pixels = read_image(encoded(values, kind))[0].flatten()
        assert np.array_equal(pixels, np.round(values.flatten() / 257))
        assert (np.diff(pixels.astype(int)) >= 0).all()
        assert np.unique(pixels).size == 256
    assert read_header(encoded(values)).channels == 1


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (32, 32), (33, 70)])
def test_a_size_is_what_pillow_makes_of_it(size):
    """No decoder's reduced scale: anybody gets these pixels by two lines of Pillow."""
    rough = np.random.default_rng(1).integers(0, 256, (70, 100, 3), np.uint8)
    photograph = Image.fromarray(rough).resize((900, 640), Image.Resampling.BICUBIC)
    content = encoded(photograph, "JPEG", quality=90)
    image, wh, bilinear = Image.open(BytesIO(content)), size[::-1], Image.Resampling.BILINEAR
    wanted = {
        "crop": ImageOps.fit(image, wh, bilinear),
        "letterbox": ImageOps.pad(image, wh, bilinear, color=(128, 128, 128)),
        "squash": image.resize(wh, bilinear),
    }
    for fit, want in wanted.items():
        assert np.array_equal(hwc(read_image(content, size=size, fit=fit)), np.array(want))


@pytest.fixture
def damaged(tmp_path):
    """One file of every kind of damage, by the code that is expected."""
    whole = encoded(np.tile(COLOUR, (20, 20, 1)), "JPEG")
    cross = bytearray(encoded(np.tile(COLOUR, (20, 20, 1))))
    cross[len(cross) // 2] ^= 0xFF
    files = {
        "broken": [whole[: len(whole) // 2], encoded(COLOUR)[:-30], bytes(cross), whole[:100]],
        "empty": [b""],
        "not-an-image": [b"these are words", b"\0" * 500, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
    }
    paths = {}
    for code, contents in files.items():
        for number, content in enumerate(contents):
            path = tmp_path / f"{code}{number}.jpg"
            path.write_bytes(content)
            paths[path] = code
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    return paths | {
        tmp_path / "dangling.jpg": "missing",
        tmp_path / "folder.jpg": "folder",
        tmp_path / "pipe.jpg": "special",
    }


def test_damaged_files_are_refused_by_name_and_cause(damaged):
    for path, code in damaged.items():
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(caught.value).startswith(f"{path}: "), path
        assert caught.value.code == code, path


def test_a_file_cut_anywhere_is_refused_or_whole():
    content = encoded(np.tile(COLOUR, (8, 8, 1)))
    whole = read_image(content)
    for cut in range(0, len(content), 211):
        try:
            pixels = read_image(content[:cut])
        except ImageError:
            continue
        assert np.array_equal(pixels, whole)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5000), (5000, 1), (300, 200)])
def test_any_size_is_brought_to_the_one_asked_for(height, width):
    pixels = np.full((height, width, 3), 77, np.uint8)
    for kind in ("PNG", "JPEG"):
        image = read_image(encoded(pixels, kind), 3, (24, 16))
        assert image.shape == (3, 24, 16)
        assert np.abs(image.astype(int) - 77).max() <= 3


def test_resizing_equals_crop_then_resize():
    pixels = RNG.integers(0, 256, (40, 90, 3), np.uint8)
    want = np.array(Image.fromarray(pixels[:, 25:65]).resize((20, 20), Image.Resampling.BILINEAR))
    got = hwc(read_image(encoded(pixels), 3, (20, 20)))
    # At the border the filter sees the pixels beyond the crop, which are better than none.
    assert np.array_equal(got[:, 1:-1], want[:, 1:-1])


def test_a_large_jpeg_is_near_the_full_decode():
    pixels = np.array(Image.fromarray(SMOOTH).resize((640, 480), Image.Resampling.BICUBIC))
    content = encoded(pixels, "JPEG", quality=95)
    full = Image.open(BytesIO(content)).crop((80, 0, 560, 480)).resize((60, 60), Image.Resampling.BILINEAR)
    assert np.abs(hwc(read_image(content, 3, (60, 60))).astype(int) - np.array(full)).max() <= 3


def test_grey_is_recognized_by_the_header():
    for pixels, channels in ((GREY, 1), (COLOUR, 3), (Image.fromarray(COLOUR).quantize(4), 3), (GREY > 9, 1)):
        assert read_header(encoded(pixels)).channels == channels
    assert read_header(encoded(Image.fromarray(GREY), "GIF")).channels == 1
