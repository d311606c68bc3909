"""Copies are found, and different images are not."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from metamixer.data.files.duplicates import Copy, copies, fingerprint, is_blank
from metamixer.data.files.folder_check import check


def scene(seed, side=96):
    """An image with large and small structure, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((side, side)) for n in (3, 9, 27)]
    return Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.2)


def pixels(image):
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def again(image, side, quality):
    file = BytesIO()
    image.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return pixels(Image.open(file))


def test_stored_again_is_the_same_look():
    images = [scene(seed) for seed in range(60)]
    prints = [fingerprint(pixels(image)) for image in images]
    assert copies(prints) == []
    small = [fingerprint(again(image, 60, 75)) for image in images]
    assert copies([*prints, *small]) == [Copy(n, 60 + n, "same look") for n in range(60)]
    assert copies([*prints, prints[7], None]) == [Copy(7, 60, "same pixels")]


def test_blank_images_have_the_same_pixels_only():
    flat, other = np.full((3, 20, 20), 7, np.uint8), np.full((3, 20, 20), 9, np.uint8)
    assert is_blank(flat)
    assert not is_blank(pixels(scene(0)))
    assert copies([fingerprint(flat), fingerprint(other), fingerprint(flat)]) == [Copy(0, 2, "same pixels")]


@pytest.fixture
def leaky(tmp_path):
    def put(place, content):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content.transpose(1, 2, 0)).save(path)

    for label, name in enumerate(("cat", "dog")):
        for number in range(4):
            put(f"train/{name}/{number}.png", pixels(scene(10 * label + number)))
            put(f"test/{name}/{number}.png", pixels(scene(100 + 10 * label + number)))
    put("test/cat/leak.png", again(scene(2), 80, 80))
    put("train/dog/twin.bmp", pixels(scene(12)))
    put("train/cat/other.png", pixels(scene(11)))
    put("train/cat/black.png", np.zeros((3, 8, 30), np.uint8))
    return tmp_path


def test_check_says_where_copies_are(leaky):
    found = check(leaky)
    named = {
        (found.files[copy.first].path.name, found.files[copy.second].path.name, copy.kind, found.where(copy))
        for copy in found.copies
    }
    assert named == {
        ("2.png", "leak.png", "same look", "across splits"),
        ("2.png", "twin.bmp", "same pixels", "inside a class"),
        ("other.png", "1.png", "same pixels", "across classes"),
    }
    assert [file.path.name for file in found.files if file.blank] == ["black.png"]
    assert [file.path.name for file in found.files if file.tiny] == ["black.png"]
