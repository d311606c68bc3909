"""Attacks stay inside the ball and inside what pixels can be; where the best one is known, it is found."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamixer.losses.components.adversarial_examples import Pixels, perturb
from tests.oracle import draw


def normalised(pixels, mean, std):
    mean, std = (torch.tensor(each, dtype=torch.float64).view(1, -1, *[1] * (pixels.ndim - 2)) for each in (mean, std))
    return (pixels - mean) / std


def in_pixels(images, mean, std):
    mean, std = (torch.tensor(each, dtype=torch.float64).view(1, -1, *[1] * (images.ndim - 2)) for each in (mean, std))
    return images * std + mean


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    channels=st.integers(1, 3),
    size=st.sampled_from([(), (5,), (3, 4), (2, 2, 2)]),
    eps=st.floats(1e-3, 1.5),
    step=st.floats(1e-3, 1.0),
    steps=st.integers(1, 5),
    scale=st.floats(0.05, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_inside_the_ball_and_inside_of_what_pixels_can_be(seed, channels, size, eps, step, steps, scale, dtype):
    g = torch.Generator().manual_seed(seed)
    mean = torch.rand(channels, generator=g).tolist()
    std = (scale * (0.1 + torch.rand(channels, generator=g))).tolist()
    pixels = torch.rand((4, channels, *size), generator=g, dtype=torch.float64)
    pixels[0], pixels[1] = 0, 1  # at the limits
    images = normalised(pixels, mean, std).to(dtype)
    before = images.clone()
    factors = torch.randn(images.shape, generator=g).to(dtype)

    def value(x):
        return (factors * x).sin().sum()

    found = perturb(value, images, Pixels.of(mean, std), eps=eps, step=step, steps=steps)
    there = in_pixels(found.double(), mean, std)
    rounding = 1e-5 if dtype == torch.float32 else 1e-6  # the limits themselves are float32
    assert found.dtype == dtype
    assert (there - pixels).abs().max() <= eps + rounding
    assert (there - pixels).abs().max() <= steps * step + rounding or steps == 1
    assert there.min() >= -rounding
    assert there.max() <= 1 + rounding
    assert torch.equal(images, before)
    assert not found.requires_grad


def test_one_step_is_the_sign_of_the_gradient():
    """A linear value: the largest in the ball is x + eps sign(w) in pixels, each channel by its own deviation."""
    mean, std, eps = [0.4, 0.6], [0.2, 0.5], 0.1
    pixels = 0.2 + 0.6 * torch.rand((3, 2, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, w = normalised(pixels, mean, std), draw(3, 2, 4, 4, seed=1)
    found = perturb(lambda x: (w * x).sum(), images, Pixels.of(mean, std), eps=eps, step=0.9, steps=1)
    torch.testing.assert_close(in_pixels(found, mean, std), pixels + eps * w.sign(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        ((found - images).abs().amax((0, 2, 3))), torch.tensor([0.5, 0.2], dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_several_steps_are_the_slow_loop():
    mean, std, eps, step = [0.5, 0.3], [0.25, 0.4], 0.06, 0.025
    pixels = torch.rand((3, 2, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = draw(3, 2, 4, seed=1)

    def value(x):
        return (w * x + (x**2).roll(1, -1)).sin().sum()

    x = pixels.clone()
    for _ in range(4):
        at = x.clone().requires_grad_()
        value(normalised(at, mean, std)).backward()
        for index in range(x.numel()):
            moved = x.flatten()[index] + step * torch.sign(at.grad.flatten()[index])
            start = pixels.flatten()[index]
            x.view(-1)[index] = min(max(moved, start - eps, 0.0), start + eps, 1.0)
    images = normalised(pixels, mean, std)
    found = perturb(value, images, Pixels.of(mean, std), eps=eps, step=step, steps=4)
    torch.testing.assert_close(in_pixels(found, mean, std), x, rtol=0, atol=1e-6)
    assert value(found) > value(images)


def test_what_was_no_image_becomes_one():
    found = perturb(
        lambda x: x.sum(), torch.tensor([[-9.0, 9.0]]), Pixels.of([0.5] * 2, [0.5] * 2), eps=0.1, step=1, steps=1
    )
    assert found.tolist() == [[-1.0, 1.0]]


def test_a_flat_value_changes_nothing_and_no_graph_is_needed_outside():
    images = draw(2, 1, 3).sigmoid()
    with torch.no_grad():
        assert torch.equal(
            perturb(lambda x: (0 * x).sum(), images, Pixels.of([0.0], [1.0]), eps=0.1, step=0.1, steps=3), images
        )
        moved = perturb(lambda x: x.sum(), images, Pixels.of([0.0], [1.0]), eps=0.01, step=0.1, steps=1)
    torch.testing.assert_close(moved, (images + 0.01).clamp(max=1), rtol=0, atol=1e-7)


def test_layout_of_the_images_is_kept():
    images = draw(2, 3, 4, 4).sigmoid().to(memory_format=torch.channels_last)
    found = perturb(lambda x: x.sum(), images, Pixels.of([0.0] * 3, [1.0] * 3), eps=0.1, step=0.1, steps=2)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5, 0.5]), ([], []), ([0.5], [0.0]), ([0.5], [-1.0])])
def test_an_invalid_normalisation(mean, std):
    with pytest.raises(ValueError, match="one mean and one deviation above 0"):
        Pixels.of(mean, std)


def test_images_of_other_channels():
    with pytest.raises(ValueError, match=r"3 channels, the images have 1"):
        perturb(lambda x: x.sum(), draw(2, 1, 4), Pixels.of([0.5] * 3, [0.5] * 3), eps=0.1, step=0.1, steps=1)
