"""torchvision's policies for each image on its own: seeded, the same for every process, within their limits."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from metamixer.data import DataError
from metamixer.data.policies import POLICIES, Changes

SEEDS = torch.arange(24) * 1234567


def noise(count=24, channels=3, side=16):
    draw = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES[2:])
def test_each_image_is_changed_by_its_own_seed(policy, channels):
    images = noise(1, channels).expand(24, -1, -1, -1)
    before = torch.random.get_rng_state()
    found = Changes(policy)(images, SEEDS)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert found.dtype == torch.uint8
    assert len(found.flatten(1).unique(dim=0)) > 6
    assert torch.equal(found, Changes(policy)(images, SEEDS))
    assert not torch.equal(found, Changes(policy)(images, SEEDS + 1))
    for number in range(2):  # of two processes each makes its own images of the batch
        assert torch.equal(Changes(policy)(images[number::2], SEEDS[number::2]), found[number::2])


def changed(images, **settings):
    return (Changes(**settings)(images, SEEDS).float() - images.float()).abs().mean().item()


def test_magnitude_and_number_of_operations_say_how_much():
    images = noise()
    for policy in ("rand", "augmix"):
        weak, usual, strong = (changed(images, policy=policy, magnitude=value) for value in (1, None, 10))
        assert weak < min(usual, strong)
    assert changed(images, policy="rand", ops=1) < changed(images, policy="rand", ops=6)
    assert changed(images, policy="rand", magnitude=0) < changed(images, policy="rand", magnitude=1)
    usual = {"rand": (9, 2), "augmix": (3, 3)}
    for policy, (magnitude, ops) in usual.items():
        named = Changes(policy, magnitude, ops)(images, SEEDS)
        assert torch.equal(Changes(policy)(images, SEEDS), named)


def test_jitter_of_brightness_is_that_of_pillow():
    images = noise()
    found = Changes(jitter=(0.4, 0, 0, 0))(images, SEEDS).numpy()
    for image, other in zip(images.numpy(), found, strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        seen = [
            np.abs(np.asarray(ImageEnhance.Brightness(picture).enhance(factor)).transpose(2, 0, 1) - other.astype(int))
            for factor in np.linspace(0.6, 1.4, 801)
        ]
        assert min(each.max() for each in seen) <= 1
    for jitter in ((0, 0.4, 0, 0), (0, 0, 0.4, 0), (0, 0, 0, 0.2)):
        assert not torch.equal(Changes(jitter=jitter)(images, SEEDS), images)
    assert not Changes(jitter=(0, 0, 0, 0))


def test_erasing_makes_boxes_black():
    images = torch.full((400, 3, 16, 16), 200, dtype=torch.uint8)
    found = Changes(erasing=0.25)(images, torch.arange(400) * 77)
    erased = (found == 0).any(1).flatten(1).sum(1)
    assert 0.17 < (erased > 0).float().mean() < 0.33
    five = Changes(erasing=1.0)(torch.full((2, 5, 16, 16), 200, dtype=torch.uint8), torch.arange(2))
    assert (five == 0).any()


def test_images_of_floating_values_keep_their_range():
    images = noise().float()
    for policy in ("trivial", "rand", "auto", "augmix"):
        found = Changes(policy)(images, SEEDS)
        assert found.dtype == torch.float32
        assert 0 <= found.min() <= 30
        assert 200 <= found.max() <= 255.01


def test_colours_are_of_one_or_three_channels():
    Changes("trivial").check(1)
    Changes(erasing=0.5).check(4)
    for changes in (Changes("trivial"), Changes(jitter=(0.1, 0, 0, 0))):
        with pytest.raises(DataError, match="the images have 4 channels; expected augment=light or none"):
            changes(noise(channels=4), SEEDS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "strong"}, "augment='strong'; expected one of none, light, trivial"),
        ({"policy": "trivial", "magnitude": 3}, "augment_magnitude=3 with augment=trivial; expected with rand or aug"),
        ({"ops": 3}, "augment_ops=3 with augment=light"),
        ({"policy": "rand", "magnitude": 31}, "augment_magnitude=31; expected 0 to 30 with augment=rand"),
        ({"policy": "augmix", "magnitude": 0}, "augment_magnitude=0; expected 1 to 10 with augment=augmix"),
        ({"policy": "rand", "ops": 0}, "augment_ops=0; expected 1 to"),
        ({"jitter": (-0.1, 0, 0, 0)}, "color_jitter: brightness -0.1"),
        ({"jitter": (0, 0, 0, 0.6)}, "at most 0.5 for the hue"),
        ({"erasing": 2}, "erasing=2"),
    ],
)
def test_settings_that_do_not_exist(settings, words):
    with pytest.raises(DataError, match=words):
        Changes(**settings)
