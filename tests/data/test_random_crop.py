"""Random crops: within their limits, and with the pixels that Pillow gives."""

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import DataError
from metamixer.data.random_crop import RandomCrop

ALL = (0, 1, 5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_crops_keep_to_the_limits():
    for width, height in ((100, 80), (5000, 1), (1, 1)):
        shares = []
        for seed in range(200):
            left, top, right, bottom = RandomCrop((0.2, 0.6), (0.5, 2)).draw(generator(seed))(width, height)
            assert 0 <= left < right <= width + 1e-9
            assert 0 <= top < bottom <= height + 1e-9
            shares.append((right - left) * (bottom - top) / (width * height))
            if width == 100:
                assert 1 / 2 - 1e-9 <= (right - left) / (bottom - top) <= 2 + 1e-9
        if width == 100:
            assert 0.2 - 1e-9 <= min(shares) < 0.25 < 0.55 < max(shares) <= 0.6 + 1e-9


def test_a_batch_is_cropped_as_pillow_crops_each_image():
    images = torch.randint(0, 256, (64, 3, 24, 32), dtype=torch.uint8, generator=generator(1))
    crop = RandomCrop((0.1, 0.9), (0.5, 3))
    found = crop(images, generator(5), (0, 1, 64))
    tries = torch.rand(64, 10, 4, generator=generator(5), dtype=torch.float64)
    for image, other, one in zip(images.numpy(), found.numpy(), tries, strict=True):
        left, top, w, h = crop._boxes(one[None], 32, 24)[0].tolist()
        wanted = Image.fromarray(image.transpose(1, 2, 0)).resize(
            (32, 24), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h)
        )
        assert np.abs(np.asarray(wanted).transpose(2, 0, 1).astype(int) - other).max() <= 1
    floating = crop(images.float(), generator(5), (0, 1, 64))
    assert (floating - found.float()).abs().max() <= 0.5
    for number in range(2):
        assert torch.equal(crop(images[number::2], generator(5), (number, 2, 64)), found[number::2])


def test_the_box_of_a_file_is_that_of_a_batch_with_the_same_draws():
    crop = RandomCrop((0.1, 0.5))
    for seed in range(100):
        tries = torch.rand(10, 4, generator=generator(seed), dtype=torch.float64)
        for size in ((50, 40), (500, 1)):  # in the second none of the tries fits
            left, top, w, h = crop._boxes(tries[None], *size)[0].tolist()
            assert crop.draw(generator(seed))(*size) == pytest.approx((left, top, left + w, top + h), rel=1e-13)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scale": (0, 1)}, r"crop_scale=\[0, 1\]: expected"),
        ({"scale": (0.5, 0.2)}, "crop_scale"),
        ({"scale": (0.5, 1.2)}, "crop_scale"),
        ({"ratio": (2, 1)}, r"crop_ratio=\[2, 1\]: expected"),
        ({"ratio": (0, 1)}, "crop_ratio"),
    ],
)
def test_limits_that_do_not_exist(settings, words):
    with pytest.raises(DataError, match=words):
        RandomCrop(**settings)
