"""What does not fit together is refused before the first step, and what fits is not."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metamixer import Cohort
from metamixer.core.types import Batch
from metamixer.losses import DML, OKDDip
from metamixer.losses.base import Loss
from metamixer.training.distributed import ProcessGrid
from metamixer.training.optimizer_step import TrainingError
from metamixer.training.sanity_check import check_learning, check_parts, dry_run, wrong_label
from metamixer.training.settings import TrainSettings
from tests import toys

NAMES = ("0 toy", "1 toy")


def grid(kind="cpu", shares=1, groups=1):
    """What is asked of processes: their number and device."""
    return SimpleNamespace(device=torch.device(kind), world=shares * groups, shares=shares, groups=groups)


class LooksInside(DML):
    needs = ("stages",)


@pytest.mark.parametrize(
    ("cohort", "loss", "processes", "settings", "message"),
    [
        ({"parallel": "threads"}, DML, grid(), {"update": "alternating"}, "accepted is update='joint'"),
        ({}, DML, grid(groups=2), {"update": "alternating"}, "accepted is update='joint'"),
        ({"parallel": "threads"}, DML, grid(shares=2), {}, "here are 2 on cpu: accepted is parallel='none'"),
        ({"parallel": "threads"}, DML, grid("cuda"), {}, "here are 1 on cuda"),
        ({"compile": "reduce-overhead"}, DML, grid("cuda"), {"micro_batches": 2}, "or micro_batches=1"),
        ({}, DML, grid(shares=2), {"micro_batches": 3, "mixing_groups": 4}, "=4: accepted are multiples of 6"),
        ({}, LooksInside, grid(groups=2), {}, "LooksInside looks at the stages of all peers"),
        ({}, DML, grid(groups=3), {}, "peer_groups=3: .*accepted is peer_groups=1"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(cohort, loss, processes, settings, message):
    made = Cohort([toys.network(seed) for seed in range(2)], stages=["0", "1"], **cohort)
    with pytest.raises(TrainingError, match=message):
        check_parts(made, loss(), processes, TrainSettings(**settings))


@pytest.mark.parametrize(
    ("cohort", "processes", "settings"),
    [
        ({}, grid(), {"update": "alternating"}),
        ({"parallel": "threads"}, grid(), {"micro_batches": 2}),
        ({"compile": "reduce-overhead"}, grid("cuda"), {}),
        ({"compile": "reduce-overhead"}, grid(), {"micro_batches": 2}),
        ({}, grid(shares=2), {"micro_batches": 3, "mixing_groups": 12}),
        ({}, grid(groups=2), {}),
    ],
)
def test_parts_that_fit(cohort, processes, settings):
    made = Cohort([toys.network(seed) for seed in range(2)], stages=["0", "1"], **cohort)
    check_parts(made, DML(), processes, TrainSettings(**settings))


def test_batch_norm_over_processes_needs_cuda():
    network = nn.SyncBatchNorm.convert_sync_batchnorm(toys.network(0))
    cohort = Cohort([network, toys.network(1)], stages=["0", "1"])
    with pytest.raises(TrainingError, match="needs CUDA devices, this is cpu"):
        check_parts(cohort, DML(), grid(), TrainSettings())
    check_parts(cohort, DML(), grid("cuda"), TrainSettings())


@pytest.fixture
def here():
    return ProcessGrid(TrainSettings(accelerator="cpu"))


def a_batch(shape=(1, 8, 8)):
    return Batch(torch.zeros(4, *shape), torch.arange(4) % 3)


def test_a_dry_run_changes_nothing_but_the_loss(here):
    cohort, loss = toys.cohort(), OKDDip()
    before = {name: value.clone() for name, value in cohort.state_dict().items()}
    generator = torch.random.get_rng_state()
    assert dry_run(cohort, loss, a_batch(), here, NAMES, 0, 3) == 3
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in cohort.state_dict().items())
    assert cohort.training
    assert list(loss.parameters())


def test_the_weights_of_a_loss_are_those_of_its_seed(here):
    def weights(seed):
        loss = OKDDip()
        dry_run(toys.cohort(), loss, a_batch(), here, NAMES, seed)
        return torch.cat([each.detach().flatten() for each in loss.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


class Refuses(Loss):
    def setup(self, outputs):
        raise ValueError("three peers are needed")

    def forward(self, outputs, targets): ...


@pytest.mark.parametrize(
    ("batch", "loss", "classes", "message"),
    [
        (a_batch((3, 8, 8)), DML, 3, "peer 0 toy cannot take images of 3×8×8"),
        (a_batch((1, 9, 9)), DML, 3, "peer 0 toy cannot take images of 1×9×9"),
        (a_batch(), DML, 4, r"the peers \(0 toy, 1 toy\) have outputs for 3 classes, the data have 4"),
        (Batch(torch.full((4, 1, 8, 8), math.nan), torch.zeros(4)), DML, 3, "infinite or NaN in the first batch"),
        (a_batch(), Refuses, 3, "three peers are needed"),
    ],
)
def test_what_a_dry_run_finds(batch, loss, classes, message, here):
    cohort = toys.cohort()
    with pytest.raises(TrainingError, match=message):
        dry_run(cohort, loss(), batch, here, NAMES, 0, classes)
    assert cohort.training


@pytest.mark.parametrize(
    ("labels", "whole", "wrong"),
    [([0, 2], None, None), ([0, 3], None, 3), ([-1, 2], None, -1), ([0, 1], [0, 1, 7], 7), ([9, 9], [0, 2], None)],
)
def test_labels_out_of_range(labels, whole, wrong):
    batch = Batch(torch.zeros(2, 1), torch.tensor(labels), whole=None if whole is None else torch.tensor(whole))
    said = wrong_label(batch, 3)
    assert said == ("" if wrong is None else f"there is a label {wrong}; accepted: 0 to 2, for 3 classes")


class Auxiliary(nn.Module):
    """More in training than in evaluation, as torchvision's Inception."""

    def __init__(self, more, error=None):
        super().__init__()
        self.network, self.more, self.error, self.largest = toys.network(0), more, error, 0

    def forward(self, x):
        if self.training:
            self.more(x)
            self.largest = max(self.largest, len(x))
            if self.error:
                raise self.error
        return self.network(x)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (nn.AvgPool2d(9), None, "peer 0 toy cannot learn from images of 1×8×8: .*Output size is too small"),
        (nn.Identity(), ValueError("only squares"), "peer 0 toy cannot learn from images of 1×8×8: only squares"),
        (nn.Identity(), AssertionError("only squares"), "peer 0 toy cannot learn from images of 1×8×8: only squares"),
    ],
)
@pytest.mark.parametrize("smallest", [1, 2, 4])
def test_what_only_training_computes_is_tried(more, error, message, smallest, here):
    cohort = Cohort([Auxiliary(more, error), Auxiliary(nn.Identity())], stages=["network.0"])
    dry_run(cohort, DML(), a_batch(), here, NAMES, 0, 3)
    with pytest.raises(TrainingError, match=message):
        check_learning(cohort, a_batch(), smallest, here, 1, NAMES)
    assert cohort.training


def test_trying_changes_nothing_and_leaves_out_who_does_not_learn(here):
    frozen = Auxiliary(nn.Identity(), ValueError("not in training"))
    cohort = Cohort([Auxiliary(nn.Dropout()), frozen], stages=["network.0"], frozen=[1])
    before = {name: value.clone() for name, value in cohort.state_dict().items()}
    generator = torch.random.get_rng_state()
    check_learning(cohort, a_batch(), 4, here, 1, NAMES)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in cohort.state_dict().items())
    assert cohort.peers[0].largest == 2
