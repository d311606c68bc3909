"""Sets in memory, statistics and changes of size."""

import pytest
import torch

from metamixer.data import DataError, TensorImages, statistics
from metamixer.data.image_set import conform, overlap, pair


def noise(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_fetch_and_subset():
    images = TensorImages(noise(6, 3, 4, 5), torch.tensor([0, 1, 0, 1, 0, 1]), ("a", "b"))
    assert (images.channels, images.size, len(images)) == (3, (4, 5), 6)
    part = images.subset(torch.tensor([5, 0]))
    assert torch.equal(part.images, images.images[[5, 0]])
    assert part.labels.tolist() == [1, 0]
    assert torch.equal(part.fetch(torch.tensor([1, 1])), images.images[[0, 0]])
    assert images.to("cpu").classes == ("a", "b")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.float64), torch.tensor([0, 1]), "float64"),
        (torch.full((2, 1, 4, 4), -1.0), torch.tensor([0, 1]), "from -1 to -1; expected .*0 to 255"),
        (torch.full((2, 1, 4, 4), float("nan")), torch.tensor([0, 1]), "from nan to nan"),
        (noise(2, 4, 4), torch.tensor([0, 1]), r"\(2, 4, 4\)"),
        (noise(2, 1, 4, 4), torch.tensor([0, 1, 1]), r"\(3,\).*\(2,\)"),
        (noise(2, 1, 4, 4), torch.tensor([0.0, 1.0]), "int64"),
        (noise(2, 1, 4, 4), torch.tensor([0, 2]), "0 to 2.*numbered from 0 to 1"),
        (noise(2, 1, 4, 4), torch.tensor([-1, 1]), "-1 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        TensorImages(images, labels, ("a", "b"))


def test_statistics_equal_float64():
    images = noise(700, 3, 5, 6)
    images[:, 1] //= 3
    mean, std = statistics(images)
    pixels = images.double() / 255
    want = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), want[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.tensor(std, dtype=torch.float64), want[1], rtol=1e-12, atol=0)


def test_statistics_of_a_limited_number_are_of_images_from_end_to_end():
    images = torch.zeros(101, 1, 2, 2, dtype=torch.uint8)
    images[[0, 50, 100]] = 255
    assert statistics(images, limit=3)[0] == (1.0,)


def test_a_constant_channel_can_be_divided_by():
    assert statistics(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8))[1] == (1 / 255,)


def test_conform_keeps_what_fits_and_cuts_the_rest():
    images = noise(3, 1, 6, 10)
    assert conform(images, None, None) is images
    assert conform(images, (6, 10), 1) is images
    assert torch.equal(conform(images, (6, 6), 1), images[..., 2:8])
    colour = conform(images, (3, 3), 3)
    assert colour.shape == (3, 3, 3, 3)
    assert torch.equal(colour[:, 0], colour[:, 2])
    white = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(conform(white, (8, 8), 1), torch.full((1, 1, 8, 8), 255, dtype=torch.uint8))
    assert conform(torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1), None, 1).item() == 76


def test_overlap_counts_copies():
    first = TensorImages(noise(5, 1, 4, 4), torch.zeros(5, dtype=torch.int64), ("a",))
    copies = torch.cat([first.images[[0, 3, 3]], noise(2, 1, 4, 4, seed=9)])
    assert overlap(first, TensorImages(copies, torch.zeros(5, dtype=torch.int64), ("a",))) == 3


@pytest.mark.parametrize("size", [0, (3,), (3, 0), (1, 2, 3), (2.5, 2)])
def test_invalid_sizes_are_refused(size):
    with pytest.raises(DataError, match="accepted: a side"):
        pair(size)
