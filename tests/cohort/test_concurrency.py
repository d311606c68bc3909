"""Peers in threads against the same peers one after the other."""

import copy
import threading

import pytest
import torch
from torch import nn

from metamixer import DML, Cohort, MetaMixer, total
from metamixer.cohort.concurrency import in_threads
from metamixer.core.plan import MixPlan
from metamixer.core.types import Batch
from metamixer.mixers import ManifoldMixup
from metamixer.models import resnet8, wrn_16_1
from metamixer.training.train_step import train_step


def images(count=6):
    return torch.randn(count, 2, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def pair(peers=2, frozen=()):
    """The same networks twice: in a row, and in threads. Different architectures, so of different speed."""
    torch.manual_seed(0)
    networks = [(resnet8, wrn_16_1)[index % 2](num_classes=5, in_channels=2).double() for index in range(peers)]
    row = Cohort(networks, frozen=frozen)
    return row, Cohort(copy.deepcopy(networks), frozen=frozen, parallel="threads")


def gradients(cohort):
    return {name: weight.grad for name, weight in cohort.named_parameters()}


class WithStages(nn.Module):
    """Something that looks at what the stages put out, and has weights of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, outputs, targets, progress=None):
        first = torch.stack([stages[0].square().mean() + stages[-1].mean() for stages in outputs.stages])
        return {"task": DML()(outputs, targets)["task"], "stages": self.weight * first}


@pytest.mark.parametrize("make_loss", [DML, WithStages])
@pytest.mark.parametrize("peers", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_step_in_threads_is_the_step_in_a_row(peers, make_loss, seed):
    results = []
    for cohort in pair(peers):
        loss = make_loss()
        batch = Batch(images(), torch.tensor([0, 1, 2, 0, 1, 4]), images().flip(0))
        step = train_step(cohort, MetaMixer(), loss, batch, torch.Generator().manual_seed(seed))
        total(step.terms).backward()
        results.append((step, gradients(cohort), gradients(loss), dict(cohort.named_buffers())))
    (row, *found_row), (threads, *found_threads) = results
    torch.testing.assert_close(threads.outputs.logits, row.outputs.logits)
    torch.testing.assert_close(threads.outputs.stages, row.outputs.stages)
    torch.testing.assert_close(dict(threads.terms), dict(row.terms))
    for mine, other in zip(found_threads, found_row, strict=True):
        torch.testing.assert_close(mine, other)


def test_each_peer_may_mix_at_a_stage_of_its_own():
    row, threads = pair()
    plan = ManifoldMixup(stage_draws=2)(images(), torch.arange(6) % 5, generator=torch.Generator().manual_seed(3))
    assert plan.at(3, 0).operations[0].stage != plan.at(3, 1).operations[0].stage
    torch.testing.assert_close(threads(images(), plan).logits, row(images(), plan).logits)


def test_a_frozen_peer_gets_no_gradient():
    _, threads = pair(3, frozen=[1])
    outputs = threads(images())
    assert outputs.logits.requires_grad
    assert not any(stage.requires_grad for stage in outputs.stages[1])
    outputs.logits.square().sum().backward()
    assert all(weight.grad is None for weight in threads.peers[1].parameters())
    assert all(weight.grad is not None for weight in threads.peers[2].parameters())


def test_no_graph_where_the_caller_wants_none():
    row, threads = pair()
    with torch.no_grad():
        outputs = threads.eval()(images())
    assert not outputs.logits.requires_grad
    torch.testing.assert_close(outputs.logits, row.eval()(images()).logits)


def test_the_images_get_the_gradient_of_all_peers():
    found = []
    for cohort in pair():
        x = images().requires_grad_()
        cohort.eval()(x, MixPlan()).logits.sin().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0])


def test_autocast_reaches_the_threads():
    row, threads = pair()
    for cohort in (row, threads):
        cohort.float()
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found = row(images().float()), threads(images().float())
    assert found.stages[0][0].dtype == wanted.stages[0][0].dtype == torch.bfloat16
    torch.testing.assert_close(found.logits, wanted.logits, atol=0.02, rtol=0.02)
    assert threads(images().float()).stages[0][0].dtype == torch.float32


def test_the_number_of_threads_elsewhere_stays():
    before = torch.get_num_threads()
    _, threads = pair()
    threads(images())
    assert torch.get_num_threads() == before
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [before]


def test_the_peers_share_the_cores():
    cores = torch.get_num_threads()
    found = []

    def work(index, own):
        found.append(torch.get_num_threads())
        return (own * 2,)

    for _ in range(2):
        in_threads(work, [images()] * 2)
    assert found == [max(1, cores // min(2, cores))] * 4, "more threads than cores are several times slower"


def test_an_error_in_one_peer_comes_out_after_all_have_ended():
    ended = []

    def work(index, own):
        if index == 0:
            raise KeyError("peer 0")
        ended.append(index)
        return (own * 2,)

    with pytest.raises(KeyError, match="peer 0"):
        in_threads(work, [images()] * 4)
    assert sorted(ended) == [1, 2, 3]


def test_a_second_backward_pass_is_refused():
    _, threads = pair()
    logits = threads(images()).logits.sum()
    logits.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        logits.backward()


def test_dropout_is_refused_in_training_and_taken_in_evaluation():
    networks = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(4)) for _ in range(2)]
    cohort = Cohort(networks, stages=["0"], parallel="threads")
    cohort.eval()(images().float())
    with pytest.raises(ValueError, match=r"dropout.*parallel='none'"):
        cohort.train()(images().float())


def test_an_unknown_way():
    with pytest.raises(
        ValueError, match=r"parallel='processes': accepted are none, threads; .* compile='reduce-overhead'"
    ):
        Cohort([nn.Linear(2, 2)], stages=[""], parallel="processes")


def test_a_copy_works_by_itself():
    _, threads = pair()
    other = copy.deepcopy(threads)
    torch.testing.assert_close(other(images()).logits, threads(images()).logits)
