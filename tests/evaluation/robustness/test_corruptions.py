"""What every corruption keeps to, and some whose result is known."""

import colorsys
import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom

from metamixer.data import load
from metamixer.evaluation.robustness.blur import trace, zoomed
from metamixer.evaluation.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from metamixer.evaluation.robustness.weather import plasma


@pytest.fixture(scope="module")
def grey():
    return load("fashion-mini").test.images[:64]


@pytest.fixture(scope="module")
def colour():
    """Smooth colours with edges between them."""
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(32, 3, 5, 5, generator=g)
    smooth = torch.nn.functional.interpolate(coarse, (32, 40), mode="bicubic").clamp(0, 1)
    smooth[:, :, 8:20, 10:25] *= 0.3
    return smooth.mul(255).byte()


def distance(a, b):
    return float((a.float() - b.float()).abs().mean())


def test_there_are_fifteen():
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_shape_type_seed_and_change(kind, grey, colour):
    for images in (grey[:8], colour[:8], grey[:4, :, :16, :16]):
        before = images.clone()
        for severity in (1, 5):
            found = corrupt(images, kind, severity, seed=3)
            assert found.dtype == torch.uint8
            assert found.shape == images.shape
            assert torch.equal(found, corrupt(images, kind, severity, seed=3))
            assert distance(found, images) > 0.2
        assert torch.equal(images, before)
    random = kind not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert torch.equal(found, corrupt(images, kind, 5, seed=4)) is not random
    assert torch.equal(found, corrupt(images, kind, 5, seed=3, first=100)) is not random


@pytest.mark.parametrize("kind", sorted(set(CORRUPTIONS) - {"elastic_transform", "glass_blur", "frost"}))
def test_a_higher_severity_is_further_away(kind, grey):
    far = [distance(corrupt(grey, kind, severity), grey) for severity in SEVERITIES]
    assert far == sorted(far)
    assert far[4] > 1.3 * far[0]


def test_frost_covers_more_and_more(grey):
    """It darkens as well, as published; how little of the image is left in what one sees only falls."""
    left = [
        np.mean(
            [
                np.corrcoef(a.ravel(), b.ravel())[0, 1]
                for a, b in zip(corrupt(grey, "frost", s).numpy(), grey.numpy(), strict=True)
            ]
        )
        for s in SEVERITIES
    ]
    assert left == sorted(left, reverse=True)
    assert left[4] < 0.95 * left[0]


def test_glass_moves_once_then_twice(grey):
    """As published severities 1 to 3 blur more and more, 4 and 5 blur less than 3 and move pixels twice."""
    far = [distance(corrupt(grey, "glass_blur", severity), grey) for severity in SEVERITIES]
    assert min(far[3:]) > 1.2 * max(far[:3])
    spots = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    spots[:, :, 8::8, 8::8] = 255
    y, x = corrupt(spots, "glass_blur", 1)[0, 0].nonzero().T
    near = lambda at: ((at + 4) % 8 - 4).abs().max()  # noqa: E731 - distance to the nearest multiple of 8
    assert near(y) <= 1
    assert near(x) <= 1


def test_elastic_bends_more_and_more():
    """A ramp stays one under the affine map of severity 1; how far it is bent grows, as published."""
    ramp = torch.arange(32).mul(6).add(20).byte().expand(16, 1, 32, 32).contiguous()
    bent = []
    for severity in SEVERITIES:
        inner = corrupt(ramp, "elastic_transform", severity)[:, 0, 8:24, 8:24].float()
        bent.append(float((inner[:, :, 2:] - 2 * inner[:, :, 1:-1] + inner[:, :, :-2]).abs().mean()))
    assert bent[0] < 0.7  # rounding to whole values
    assert bent == sorted(bent)
    assert bent[4] > 3 * bent[0]


def test_gaussian_noise_has_the_published_deviation():
    middle = torch.full((64, 1, 32, 32), 128, dtype=torch.uint8)
    for severity, deviation in zip(SEVERITIES, (0.04, 0.06, 0.08, 0.09, 0.10), strict=True):
        assert float(corrupt(middle, "gaussian_noise", severity).float().std()) / 255 == pytest.approx(
            deviation, rel=0.02
        )


def test_shot_noise_has_the_variance_of_counting():
    for value in (50, 200):
        found = corrupt(torch.full((64, 1, 32, 32), value, dtype=torch.uint8), "shot_noise", 5).float() / 255
        assert float(found.mean()) == pytest.approx(value / 255, rel=0.02)
        if value == 50:  # a bright one is clipped
            assert float(found.var()) == pytest.approx(value / 255 / 50, rel=0.04)


def test_impulse_noise_loses_the_published_share():
    found = corrupt(torch.full((64, 3, 32, 32), 128, dtype=torch.uint8), "impulse_noise", 5)
    assert float((found == 255).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert float((found == 0).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert set(found.unique().tolist()) == {0, 128, 255}


def test_brightness_keeps_hue_and_saturation(colour):
    few = colour[:2, :, ::8, ::8].contiguous()
    few = torch.nn.functional.interpolate(few.float(), (16, 16)).byte()
    few[0, :, 0, 0] = 0
    found = corrupt(few, "brightness", 4)
    for n, y, x in np.ndindex(2, 16, 16):
        h, s, v = colorsys.rgb_to_hsv(*(few[n, :, y, x].double() / 255).tolist())
        expected = [255 * part for part in colorsys.hsv_to_rgb(h, s, min(1, v + 0.2))]
        assert found[n, :, y, x].tolist() == pytest.approx(expected, abs=0.51)


def test_contrast_and_pixelate_and_jpeg_as_written_down(colour):
    image = colour[:1]
    shares = image.double() / 255
    mean = shares.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupt(image, "contrast", 3).double(), ((shares - mean) * 0.4 + mean) * 255, atol=0.51)
    shown = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=50)
    assert np.array_equal(corrupt(image, "jpeg_compression", 4)[0].permute(1, 2, 0).numpy(), np.array(Image.open(file)))
    small = shown.resize((int(40 * 0.65), int(32 * 0.65)), Image.Resampling.BOX).resize((40, 32), Image.Resampling.BOX)
    assert np.array_equal(corrupt(image, "pixelate", 5)[0].permute(1, 2, 0).numpy(), np.array(small))


def test_zoom_is_scipys(colour):
    image = (colour[:1].float() / 255)[:, :, :, :32]
    for factor in (1.0, 1.07, 1.25, 2.25):
        side = int(np.ceil(32 / factor))
        top = (32 - side) // 2
        large = zoom(image[0, :, top : top + side, top : top + side].double().numpy(), (1, factor, factor), order=1)
        trim = (large.shape[1] - 32) // 2
        expected = torch.from_numpy(large[:, trim : trim + 32, trim : trim + 32])
        assert torch.allclose(zoomed(image, factor)[0].double(), expected, atol=1e-5)


def test_a_trace_goes_where_it_should():
    dot = torch.zeros(1, 1, 33, 33)
    dot[0, 0, 16, 16] = 1
    found = trace(dot, 4, 2, torch.tensor([0.0]))[0, 0]
    weights = np.exp(-(np.arange(9) ** 2) / 8)
    # What is at x comes from x + step: the dot leaves its trace to the left.
    assert np.allclose(found[16, 8:17].flip(0), weights / weights.sum(), atol=1e-5)
    assert float(found.sum()) == pytest.approx(1, abs=1e-4)
    assert float(trace(torch.ones(2, 3, 20, 20), 9, 3, torch.tensor([0.3, -0.7])).min()) == pytest.approx(1, abs=1e-4)


def test_clouds_fill_their_range_and_get_rougher():
    draws = [torch.Generator().manual_seed(0) for _ in range(2)]
    smooth, rough = (plasma(16, 28, 40, decay, draw) for decay, draw in zip((3, 1.75), draws, strict=True))
    assert smooth.shape == (16, 1, 28, 40)
    assert 0 <= float(smooth.min()) < 0.1
    assert 0.9 < float(smooth.max()) <= 1
    bends = [float((c[..., 2:] - 2 * c[..., 1:-1] + c[..., :-2]).abs().mean()) for c in (smooth, rough)]
    assert bends[1] > 2 * bends[0]


def test_large_images_get_larger_blurs():
    dot = torch.zeros(1, 1, 96, 96, dtype=torch.uint8)
    dot[0, 0, 48, 48] = 255
    wide = (corrupt(dot, "defocus_blur", 5)[0, 0] > 0).sum()
    narrow = (corrupt(dot[:, :, 32:64, 32:64].contiguous(), "defocus_blur", 5)[0, 0] > 0).sum()
    assert 4 < wide / narrow < 12


@pytest.mark.parametrize(
    ("images", "kind", "severity", "message"),
    [
        (torch.zeros(1, 1, 32, 32), "fog", 1, "uint8 with C = 1 or 3"),
        (torch.zeros(1, 2, 32, 32, dtype=torch.uint8), "fog", 1, "C = 1 or 3"),
        (torch.zeros(1, 1, 15, 32, dtype=torch.uint8), "fog", 1, "expected at least 16 pixels"),
        (
            torch.zeros(1, 1, 32, 32, dtype=torch.uint8),
            "rain",
            1,
            "'rain' is not a corruption; expected one of gaussian_noise",
        ),
        (torch.zeros(1, 1, 32, 32, dtype=torch.uint8), "fog", 6, "1 to 5"),
    ],
)
def test_what_does_not_fit_is_said(images, kind, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(images, kind, severity)
