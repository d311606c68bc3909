"""Drawing of scenes: exact, and the same for every batch."""

import pytest
import torch
import torch.nn.functional as F

from metamixer.data.sources.scene_rendering import LARGEST, SMALLEST, Canvas, draw, resized
from tests.toys import blobs

CLASSES = ("bright", "dim")


def test_scenes_are_the_same_twice_and_for_every_batch_size():
    images = blobs(30, 0)
    canvas = Canvas(56, True)
    once, boxes = draw(images.images, images.labels, torch.arange(30), canvas, "test")
    for rows in torch.arange(30).flip(0).split(7):
        again, their = draw(images.images, images.labels, rows, canvas, "test")
        assert torch.equal(again, once[rows])
        assert torch.equal(their, boxes[rows])
    other, _ = draw(images.images, images.labels, torch.arange(30), canvas, "val")
    assert not torch.equal(other, once)


def test_resizing_is_that_of_torch():
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for side in (17, 28, 33):
        expected = F.interpolate(images.double(), (side, side), mode="bilinear", antialias=True)
        assert (resized(images, side) - expected).abs().max() <= 0.75


def test_resizing_keeps_what_is_even_and_is_its_own_mirror():
    even = torch.full((1, 2, 28, 28), 77, dtype=torch.uint8)
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for side in (5, 28, 41):
        assert resized(even, side).unique().tolist() == [77]
        assert torch.equal(resized(images, side).mT, resized(images.mT.contiguous(), side))
    assert torch.equal(resized(images, 28), images.long())


@pytest.mark.parametrize("dark", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_boxes_hold_the_object(dark, channels):
    """A full square of 255 at its place: on a dark ground and pasted as a rectangle it fills its box."""
    images = torch.full((12, channels, 28, 28), 255, dtype=torch.uint8)
    images[6:] = 0 if dark else 90
    rows = torch.arange(6)
    scenes, boxes = draw(images, torch.arange(12) // 6, rows, Canvas(56, dark), "test")
    assert scenes.shape == (6, channels, 56, 56)
    assert scenes.dtype == torch.uint8
    for scene, (x0, y0, x1, y1) in zip(scenes, boxes.int().tolist(), strict=True):
        assert (scene[:, y0:y1, x0:x1] == 255).all()
        assert x1 - x0 == y1 - y0
        assert round(SMALLEST * 28) <= x1 - x0 <= int(LARGEST * 28)
        outside = torch.ones(56, 56, dtype=torch.bool)
        outside[y0:y1, x0:x1] = False
        assert (scene[:, outside] < 255).all()


def test_the_background_keeps_to_its_levels():
    """Images in which nothing is seen: mean levels as the canvas gives them, with waves and grain around."""
    images = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    canvas = Canvas(56, True)
    scenes, _ = draw(images, torch.arange(20) % 2, torch.arange(20), canvas, "test")
    means = scenes.double().mean((1, 2, 3))
    low, high = canvas.levels
    swing = 12 + 16 + 14 + 10  # of the tint and of three waves
    assert (means > low - swing).all()
    assert (means < high + swing).all()
    assert scenes.double().std((1, 2, 3)).min() > 1
