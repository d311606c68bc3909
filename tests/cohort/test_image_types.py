"""The type of images is compared with that of a network's weights, before PyTorch's message that names neither."""

import pytest
import torch
from torch import nn

from metamixer.cohort.image_types import type_conflict


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_one_type_is_no_conflict(dtype):
    assert type_conflict(nn.Linear(2, 2).to(dtype), torch.zeros(1, 2, dtype=dtype)) == ""


@pytest.mark.parametrize(
    ("images", "weights", "ways"),
    [
        (torch.float64, torch.float32, r"images.float() or network.double()"),
        (torch.float32, torch.float64, r"images.double() or network.float()"),
        (torch.float16, torch.float32, r"images.float() or network.half()"),
    ],
    ids=str,
)
def test_both_ways_out_of_a_conflict_are_named(images, weights, ways):
    network, batch = nn.Linear(2, 2).to(weights), torch.zeros(1, 2, dtype=images)
    assert type_conflict(network, batch).endswith(ways)
    cast = {"float": torch.float32, "double": torch.float64, "half": torch.float16}
    to_images, to_network = (way.split(".")[1].removesuffix("()") for way in ways.split(" or "))
    assert type_conflict(network, batch.to(cast[to_images])) == ""
    assert type_conflict(network.to(cast[to_network]), batch) == ""


def test_pixels_are_asked_to_be_normalised():
    assert "images are uint8; accepted: floating point" in type_conflict(
        nn.Linear(2, 2), torch.zeros(1, 2, dtype=torch.uint8)
    )


def test_a_network_without_weights_takes_any_type():
    assert type_conflict(nn.Flatten(), torch.zeros(1, 2, dtype=torch.uint8)) == ""
