import math

import pytest
import torch
from torch import nn

from metamixer.training.nan_checks import LateLook, not_finite, not_finite_images, not_finite_weight

NAMES = ["0 resnet8", "1 resnet14"]


def test_the_first_term_that_is_not_finite_is_named():
    fine = {"task": torch.tensor([1.0, 2.0]), "distill": torch.zeros(2)}
    assert not_finite(fine, NAMES) == ""
    assert not_finite({**fine, "distill": torch.tensor([0.0, math.inf])}, NAMES) == (
        "the term 'distill' of peer 1 resnet14 became inf"
    )
    both = {"task": torch.tensor([math.nan, math.nan]), "distill": torch.tensor([math.inf, 0.0])}
    assert not_finite(both, NAMES) == "the term 'task' of peer 0 resnet8 became nan"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_of_images(value):
    images = torch.zeros(9, 3, 4, 4)
    assert not_finite_images(images) == ""
    images[2, 1, 3, 0] = images[5, 0, 0, 0] = value
    assert "in rows 2, 5 of the batch" in not_finite_images(images)
    images[:] = value
    assert "in rows 0, 1, 2, 3, 4 and others of the batch" in not_finite_images(images)


def test_weights_and_buffers():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert not_finite_weight(network) == ""
    network[1].running_var[0] = math.inf
    assert not_finite_weight(network) == "1.running_var"
    with torch.no_grad():
        network[0].bias[1] = math.nan
    assert not_finite_weight(network) == "0.bias"
    assert not_finite_weight(nn.ReLU()) == ""


def test_a_late_look_speaks_of_the_step_before():
    look = LateLook(NAMES)
    bad, fine = {"task": torch.tensor([math.nan, 0.0])}, {"task": torch.zeros(2)}
    assert look.rest() == ""
    assert [look.look(bad, "step 1"), look.look(fine, "step 2"), look.look(bad, "step 3")] == [
        "",
        "the term 'task' of peer 0 resnet8 became nan in step 1",
        "",
    ]
    assert look.rest().endswith("in step 3")
    assert look.rest() == ""


def test_terms_may_change_after_a_look():
    look, terms = LateLook(NAMES), {"task": torch.tensor([0.0, math.inf])}
    look.look(terms, "step 1")
    terms["task"].zero_()
    assert look.rest() == "the term 'task' of peer 1 resnet14 became inf in step 1"
