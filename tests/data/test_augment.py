"""Crop, flip and normalisation against a loop over images in float64."""

import numpy as np
import pytest
import torch

from metamixer.data import Augment, DataError, normalise
from metamixer.data.augment import _SINGLY
from metamixer.data.random_crop import RandomCrop


def slow(images, pad, flips, offsets, mean, std):
    out = torch.zeros(images.shape, dtype=torch.float64)
    B, C, H, W = images.shape
    for b in range(B):
        for c in range(C):
            for y in range(H):
                for x in range(W):
                    column = W - 1 - x if flips[b] else x
                    row, column = y + offsets[0][b] - pad, column + offsets[1][b] - pad
                    inside = 0 <= row < H and 0 <= column < W
                    pixel = images[b, c, row, column].double() if inside else 0.0
                    out[b, c, y, x] = (pixel / 255 - mean[c]) / std[c]
    return out


@pytest.mark.parametrize(("C", "H", "W"), [(1, 6, 6), (3, 5, 7), (4, 7, 4)])
@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_the_slow_loop(C, H, W, pad, flip):
    images = torch.randint(0, 256, (5, C, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = [0.1 * (c + 1) for c in range(C)], [0.2 + 0.1 * c for c in range(C)]
    draw = torch.Generator().manual_seed(3)
    offsets = torch.randint(0, 2 * pad + 1, (2, 5, 1), generator=draw).squeeze(-1).tolist()
    flips = (torch.randint(0, 2, (5, 1), generator=draw).squeeze(-1) * flip).tolist()
    before = images.clone()
    got = Augment(pad, flip)(images, mean, std, torch.Generator().manual_seed(3))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), slow(images, pad, flips, offsets, mean, std), rtol=1e-6, atol=1e-6)
    assert torch.equal(images, before)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_normalise_equals_the_formula():
    images = torch.arange(256).byte().view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    mean, std = torch.tensor([0.49, 0.48, 0.44]), torch.tensor([0.2, 0.25, 0.3])
    want = (images.double() / 255 - mean.double().view(3, 1, 1)) / std.double().view(3, 1, 1)
    torch.testing.assert_close(normalise(images, mean, std).double(), want, rtol=1e-6, atol=1e-6)
    assert normalise(images, mean, std).is_contiguous(memory_format=torch.channels_last)


def test_offsets_and_flips_are_uniform_and_each_image_has_its_own():
    # The one white pixel in the middle says where its image was moved; three in a row would say nothing of flips.
    images = torch.zeros(4096, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 1] = 255
    moved = Augment(pad=1)(images, [0.0], [1.0], torch.Generator().manual_seed(0))
    row, column = moved[:, 0].flatten(1).argmax(1) // 5, moved[:, 0].flatten(1).argmax(1) % 5
    assert torch.equal(moved.flatten(1).sum(1), torch.ones(4096))
    counts = torch.zeros(3, 5).index_put_((row - 1, column), torch.ones(4096), accumulate=True)
    # Unflipped the pixel lands in columns 0 to 2, flipped in 2 to 4; half of the images each, three rows each.
    expected = 4096 / 18 * torch.tensor([[1.0, 1, 2, 1, 1]]).repeat(3, 1)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 14 + 5 * (2 * 14) ** 0.5


def test_without_flip_the_crops_stay_the_same():
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    both = Augment()(images, [0.0] * 3, [1.0] * 3, torch.Generator().manual_seed(0))
    crop = Augment(flip=False)(images, [0.0] * 3, [1.0] * 3, torch.Generator().manual_seed(0))
    same = (both == crop).flatten(1).all(1)
    assert 20 < same.sum() < 44


def test_wrong_settings_are_refused():
    with pytest.raises(DataError, match="pad=-1"):
        Augment(pad=-1)
    with pytest.raises(DataError, match="3 channels, but 1 means"):
        normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [0.5], [0.5])


def noise(count=6, channels=3, side=16):
    return torch.randint(
        0, 256, (count, channels, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


def plain(augment, images, seed=0, part=None):
    """Pixels back from normalised images."""
    C = images.shape[1]
    draw = torch.Generator().manual_seed(seed)
    made = (
        augment(images, [0.0] * C, [1.0] * C, draw)
        if part is None
        else augment(images, [0.0] * C, [1.0] * C, draw, part)
    )
    return (made * 255).round().to(torch.uint8)


@pytest.mark.parametrize(("pad", "side"), [(3, 8), (2, 3), (9, 4)])
def test_reflection_is_that_of_numpy(pad, side):
    images = noise(40, side=side)
    found = plain(Augment(pad=pad, flip=False, pad_mode="reflect"), images)
    for image, crop in zip(images.numpy(), found.numpy(), strict=True):
        padded = np.pad(image, [(0, 0), (pad, pad), (pad, pad)], mode="reflect")
        places = [(y, x) for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
        assert any(np.array_equal(padded[:, y : y + side, x : x + side], crop) for y, x in places)
    same = plain(Augment(pad=pad, flip=False), images)
    shown = same == found
    assert (shown | (same == 0)).all()  # the same windows, and where there was black, something


def test_a_crop_stands_in_the_place_of_the_shift():
    images = noise(40)
    found = plain(Augment(0, False, crop=RandomCrop((0.2, 0.4))), images)
    assert (found != images).flatten(1).any(1).all()
    assert torch.equal(found, plain(Augment(0, False, crop=RandomCrop((0.2, 0.4))), images))
    for number in range(2):
        part = plain(Augment(0, False, crop=RandomCrop((0.2, 0.4))), images[number::2], part=(number, 2, 40))
        assert torch.equal(part, found[number::2])
    assert torch.equal(plain(Augment(0, False, crop=RandomCrop((1, 1), (1, 1))), images), images)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"pad_mode": "edge"}, "pad_mode"), ({"pad": 4, "crop": RandomCrop()}, "pad=4 with crop_scale")],
)
def test_settings_that_do_not_exist(settings, words):
    with pytest.raises(DataError, match=words):
        Augment(**settings)


@pytest.mark.parametrize("augment", [Augment(5), Augment(0), Augment(5, False), Augment(5, pad_mode="reflect")])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_and_channels_last_get_the_same_to_the_last_bit(augment, channels):
    images = noise(12, channels, side=128)
    assert images[0].numel() >= _SINGLY
    draw = torch.Generator().manual_seed(0)
    offsets = torch.randint(0, 2 * augment.pad + 1, (2, 12, 1), generator=draw)
    flips = torch.randint(0, 2, (12, 1), generator=draw).bool() & augment.flip
    wanted = augment._at_once(images, offsets[..., 0], flips)
    before = images.clone()
    last = images.contiguous(memory_format=torch.channels_last)
    for given in (images, last):
        assert torch.equal(augment.pixels(given, torch.Generator().manual_seed(0)), wanted)
    assert torch.equal(images, before)
    assert torch.equal(last, before)
    for given in (images.clone(), last.clone()):
        assert torch.equal(augment.pixels(given, torch.Generator().manual_seed(0), in_place=True), wanted)
    mean, std = [0.3, 0.4, 0.5][:channels], [0.2, 0.25, 0.3][:channels]
    whole = normalise(images, mean, std)
    assert torch.equal(whole, torch.cat([normalise(image[None], mean, std) for image in images]))
    assert torch.equal(whole, normalise(last, mean, std))
    assert normalise(last, mean, std).stride() == whole.stride()
    factor, shift = 1 / (255 * torch.tensor(std)), torch.tensor(mean) / torch.tensor(std)
    assert torch.equal(whole, images.float() * factor.view(-1, 1, 1) - shift.view(-1, 1, 1))
