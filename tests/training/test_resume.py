"""Checkpoints of a training that was never run: what changes is set by hand, saved, and read into another."""

import math

import pytest
import torch

from metamixer.losses import Independent
from metamixer.training.checkpoint import CheckpointError, pointed
from metamixer.training.distributed import ProcessGrid
from metamixer.training.optimizer_step import CohortWithLoss, NotFiniteError, Updates
from metamixer.training.resume import Best, Keeper, TrainingState
from metamixer.training.running_means import Sums
from metamixer.training.settings import TrainSettings
from tests import toys

FACTS = {"recipe": "abc"}


def grid():
    return ProcessGrid(TrainSettings(accelerator="cpu"))


def run_of(seed):
    """Two peers with weights and an optimizer's state of their own."""
    learner = CohortWithLoss(toys.cohort(), Independent())
    groups = [{"params": list(peer.parameters()), "owner": str(at)} for at, peer in enumerate(learner.cohort.peers)]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    torch.manual_seed(seed)
    for parameter in learner.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    updates = Updates(grid(), learner, learner, optimizer, clip=None, names=("a", "b"), settings=TrainSettings())
    return TrainingState(learner, optimizer, updates, Sums(), 3)


def in_the_middle():
    run = run_of(1)
    run.step, run.best, run.best_step, run.rate, run.skipped = 25, Best(2, 1, 0.75, 0.5), 20, 0.025, 3
    run.updates.factor = 0.5
    run.sums.add({"task": torch.tensor([1.0, 2.0])}, torch.eye(3).expand(2, 3, 3), torch.eye(3))
    return run


def keeper(folder, facts=FACTS):
    return Keeper(grid(), folder, facts)


def assert_same(found, wanted):
    torch.testing.assert_close(found.learner.state_dict(), wanted.learner.state_dict(), rtol=0, atol=0)
    momenta = [[run.optimizer.state[p]["momentum_buffer"] for p in run.learner.parameters()] for run in (found, wanted)]
    torch.testing.assert_close(*momenta, rtol=0, atol=0)
    for name in ("step", "best", "best_step", "rate", "skipped"):
        assert getattr(found, name) == getattr(wanted, name)
    assert found.updates.factor == wanted.updates.factor
    assert found.sums.means() == wanted.sums.means()


def test_all_that_changes_comes_back(tmp_path):
    run, other = in_the_middle(), run_of(2)
    path = keeper(tmp_path).save(run, "LATEST", whole=True)
    assert pointed(tmp_path / "checkpoints", "LATEST") == path
    keeper(tmp_path).resume(other)
    assert_same(other, run)
    assert other.open_epoch


def test_a_closed_epoch_and_no_best_yet(tmp_path):
    run, other = run_of(1), in_the_middle()
    run.step = 5
    keeper(tmp_path).save(run, "LATEST", whole=True)
    keeper(tmp_path).resume(other)
    assert_same(other, run)
    assert not other.open_epoch


def test_where_nothing_is_kept_the_run_is_at_its_beginning(tmp_path):
    run, wanted = run_of(1), run_of(1)
    for folder in (None, tmp_path):
        keeper(folder).resume(run)
        assert_same(run, wanted)
    assert keeper(None).save(run, "LATEST", whole=True) is None
    assert keeper(None).last == keeper(tmp_path).last == "there is no checkpoint yet"


def test_the_last_checkpoint_in_words(tmp_path):
    path = keeper(tmp_path).save(in_the_middle(), "LATEST", whole=True)
    assert keeper(tmp_path).last == f"the last good checkpoint is {path}"


def test_a_weight_that_is_not_finite_is_not_kept(tmp_path):
    run = in_the_middle()
    good = keeper(tmp_path).save(run, "LATEST", whole=True)
    with torch.no_grad():
        run.learner.cohort.peers[1][4].bias[0] = math.nan
    run.step = 30
    with pytest.raises(NotFiniteError, match=r"peers\.1\.4\.bias is not finite after step 30"):
        keeper(tmp_path).save(run, "LATEST", whole=True)
    assert pointed(tmp_path / "checkpoints", "LATEST") == good
    assert [path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == [good]


def test_checkpoints_of_another_recipe(tmp_path):
    keeper(tmp_path).save(in_the_middle(), "LATEST", whole=True)
    with pytest.raises(CheckpointError, match="was written with recipe abc, this run has xyz"):
        keeper(tmp_path, {"recipe": "xyz"}).resume(run_of(2))


def test_checkpoints_of_other_processes_are_read_with_a_warning(tmp_path):
    keeper(tmp_path, {**FACTS, "world_size": 2}).save(in_the_middle(), "LATEST", whole=True)
    other = run_of(2)
    with pytest.warns(UserWarning, match=r"started by 2 processes .* by 1"):
        keeper(tmp_path).resume(other)
    assert_same(other, in_the_middle())


@pytest.mark.parametrize("damage", [None, "no checkpoint"])
def test_a_pointer_to_the_best_that_was_lost_is_written_again(damage, tmp_path):
    """Where the checkpoint that is read is the one that it named."""
    run = in_the_middle()
    run.best_step = run.step
    path = keeper(tmp_path).save(run, "LATEST", "BEST", whole=True)
    pointer = tmp_path / "checkpoints" / "BEST"
    assert pointed(tmp_path / "checkpoints", "BEST") == path
    pointer.unlink()
    if damage is None:
        keeper(tmp_path).resume(run_of(2))
    else:
        pointer.write_text("../../elsewhere")
        with pytest.warns(UserWarning, match="passed over a pointer"):
            keeper(tmp_path).resume(run_of(2))
    assert pointed(tmp_path / "checkpoints", "BEST") == path


def test_best_orders_by_accuracy_then_likelihood():
    one = Best(1, 0, 0.5, 1.0)
    assert one.beats(None)
    assert Best(2, 0, 0.6, 9.0).beats(one)
    assert Best(2, 1, 0.5, 0.9).beats(one)
    assert not Best(2, 1, 0.5, 1.0).beats(one)
