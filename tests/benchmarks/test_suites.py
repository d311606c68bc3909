"""Every suite on tiny networks: its results, never how fast it is."""

import copy
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import (
    competitors,
    data,
    disk_cache,
    floor,
    in_turn,
    memory,
    memory_child,
    overhead,
    peers,
    scaling,
    shards,
    short_runs,
    startup,
    step,
)
from benchmarks.bars import BARS
from benchmarks.competitors import Competitor, by_hand, mutual
from benchmarks.settings import Settings
from metamixer.cohort.cohort import Cohort
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.core.registry import Entry
from metamixer.core.types import Outputs
from metamixer.losses import DML
from metamixer.mixers import NoMix

TINY = f"{__name__}:tiny"
ONE = Settings(networks=(TINY,), precisions=("32",), batch_size=4, rounds=2, quick=True)


def tiny(num_classes, in_channels=3):
    stages = [nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())]
    stages += [nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()) for _ in range(2)]
    return Net(stages, num_classes)


class Net(nn.Module):
    def __init__(self, stages, classes):
        super().__init__()
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(4, classes)

    def forward(self, images):
        return self.fc(self.layer3(self.layer2(self.layer1(images))).mean((2, 3)))


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """The network by its import path, whatever name pytest gave this module."""
    monkeypatch.setenv("METAMIXER_ALLOW_IMPORTS", TINY)
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(tiny=tiny))


def whole(section):
    for each in section.measured:
        assert len(each.samples) >= 1
        assert all(math.isfinite(sample) for sample in each.samples)
    assert {figure.bar for figure in section.figures} <= {bar.key for bar in BARS} | {""}
    return {each.name for each in section.measured}, {figure.bar for figure in section.figures} - {""}


def test_the_cache():
    [section] = disk_cache.measure(ONE)
    ways, titles = ("decoding", "cache"), ("shift and flip", "random crop")
    names = {f"{way}, {title}, {workers} workers" for way in ways for title in titles for workers in (0, 2)}
    assert whole(section) == (names, {"cache", "cache-workers"})
    assert not section.missing


def test_shards():
    [section] = shards.measure(ONE)
    assert whole(section) == ({f"{way}, {n} workers" for way in ("folder", "tars", "http") for n in (0, 2)}, set())
    assert len(section.figures) == 4
    assert not section.missing


def test_peers():
    names, bars = whole(step.peers(ONE, TINY, "bf16"))
    assert names == {"plain x 1", "plain x 2", "plain x 4", "DML, 2 peers", "DML, 4 peers", "DML, 2 peers, threads"}
    assert bars == {"two", "four", "threads"}


def test_all_mixers_and_losses_of_the_tables():
    names, bars = whole(step.mixers(ONE, TINY, "32"))
    assert (names, bars) == (set(MIXERS), {"metamixer"})
    section = step.losses(ONE, TINY, "32")
    assert whole(section)[0] | {each.name for each in section.missing} == set(LOSSES)


def test_a_loss_that_cannot_be_built_says_why(monkeypatch):
    class Needy(nn.Module):
        def __init__(self, teacher: int) -> None:
            super().__init__()

    monkeypatch.setitem(sys.modules, "needy", SimpleNamespace(Needy=Needy))
    monkeypatch.setitem(LOSSES.entries, "needy", Entry("needy:Needy", "needs a teacher"))
    section = step.losses(ONE, TINY, "32")
    assert [each.name for each in section.missing] == ["needy"]
    assert "teacher" in section.missing[0].reason


def test_trainer():
    names, bars = whole(overhead.trainer(ONE, TINY, "32"))
    assert (names, bars) == ({"Trainer.fit", "bare loop"}, {"trainer"})


def test_peers_in_turn_have_the_gradients_of_the_joint_step():
    batch = in_turn.batch_of(ONE, ONE.shape(TINY), companions=False)
    torch.manual_seed(0)
    networks = [tiny(10) for _ in range(4)]
    others = copy.deepcopy(networks)
    in_turn.step_in_turn(networks, batch, ONE, "32")(0)
    in_turn.joint_step(Cohort(others), NoMix(), DML(), batch, ONE, "32")(0)
    for one, other in zip(networks, others, strict=True):
        for (name, value), wanted in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(value, wanted, msg=name)
    (section,) = in_turn.measure(ONE)
    assert whole(section)[0] == {in_turn.PLAIN, in_turn.JOINT, in_turn.IN_TURN, in_turn.RECOMPUTED}


def test_scaling():
    sections = scaling.measure(ONE)
    assert len(sections) == 3
    for section in sections:
        whole(section)
        for each, figure in zip(section.measured, section.figures, strict=True):
            peers_ = int(each.name.split(", ")[1].split()[0])
            assert figure.samples == tuple(sample / peers_ for sample in each.samples)


def test_peers_of_others(monkeypatch):
    absent = Competitor("absent", "no_such_package", "pip install no-such-package", by_hand, "")
    hand = next(each for each in competitors.COMPETITORS if not each.package)
    monkeypatch.setattr(peers, "COMPETITORS", (absent, hand))
    (section,) = peers.measure(Settings((TINY,), ("32", "bf16"), batch_size=4, rounds=1, quick=True))
    names, _ = whole(section)
    assert names == {hand.name, "ours fp32", "ours bf16", "ours bf16, threads", peers.AUGMENTED}
    assert [(each.name, each.reason) for each in section.missing] == [
        ("absent", "not installed: pip install no-such-package")
    ]
    assert {f"{hand.name} / ours fp32", f"{hand.name} / ours bf16"} <= {figure.name for figure in section.figures}


def test_the_loop_by_hand_computes_our_objective():
    logits, labels = torch.randn(2, 5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    terms = DML()(Outputs(logits), nn.functional.one_hot(labels, 3).double())
    ours = terms["task"] + terms["distill"]
    theirs = [mutual(logits[index], logits[1 - index], labels) for index in (0, 1)]
    torch.testing.assert_close(torch.stack(theirs), ours)


def test_augmentation_and_decoding(monkeypatch):
    monkeypatch.setattr(data, "WORKERS", (0,))
    names, bars = whole(data.augmentation(Settings(rounds=1, quick=True)))
    assert {"batched: Augment", "TrainLoader", "per image: torchvision v2"} <= names
    assert bars == {"augment"}
    section = data.decoding(Settings(rounds=1, quick=True))
    assert "Pillow with draft (metamixer), 0 workers" in whole(section)[0]
    assert all(each.reason.startswith("not here: ") for each in section.missing)


def test_memory_children(monkeypatch):
    found = iter([10.0, 20.0, 21.0, 40.0, 12.0, 20.0])
    monkeypatch.setattr(memory, "_child", lambda *args: next(found))
    (section,) = memory.measure(replace(ONE, quick=False, rounds=1))
    assert [figure.samples[0] for figure in section.figures] == [2.0, 1.0, 1.05, 1.0, 0.3, 0.5]
    assert whole(section)[1] == {"memory"}
    assert memory_child.peak(ONE, TINY, "32", "DML, 2 peers") >= 0


def test_a_child_that_fails_says_why(monkeypatch):
    def fail(*args, **kwargs):
        raise memory.subprocess.CalledProcessError(1, "python", stderr="Traceback\nMemoryError: too much\n")

    monkeypatch.setattr(memory.subprocess, "run", fail)
    section = memory.peaks(replace(ONE, quick=False), TINY, "32")
    assert [(each.name, each.reason) for each in section.missing] == [
        (case, "MemoryError: too much") for case in memory_child.CASES
    ]


def test_startup(monkeypatch):
    monkeypatch.setattr(startup, "_process", lambda command: lambda: None)
    (section,) = startup.measure(ONE)
    assert whole(section)[1] == {"help", "list", "import", "predict", "first-step"}


@pytest.mark.slow
def test_startup_times_what_ends_well():
    """Commands that fail would be fast."""
    (section,) = startup.measure(ONE)
    assert section.missing == ()
    torch_alone, *longer = (
        next(each.median for each in section.measured if each.name == name)
        for name in (startup.TORCH, startup.PREDICT, startup.FIRST)
    )
    assert all(each > torch_alone for each in longer)


@pytest.mark.slow
def test_short_runs():
    (section,) = short_runs.measure(ONE)
    assert whole(section)[1] == {"short-run"}
    assert all(each.median > 1 for each in section.measured)  # each has imported torch


def test_floor_counts_a_convolution_as_one_does_by_hand():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(8 * 16, 5, bias=False))
    found = floor.count(network, torch.randn(2, 3, 4, 4), torch.tensor([0, 1]))
    conv, linear = 2 * (2 * 16 * 8 * 27), 2 * (2 * 128 * 5)
    # Backward: the gradient of the weights, and of the input where there is something before it.
    assert found.flop == 2 * conv + 3 * linear
    assert found.values == (3 * 2 * 3 * 16 + 2 * 2 * 8 * 16) + (3 * 2 * 128 + 2 * 2 * 5)
    assert found.weights == 8 * 27 + 128 * 5
    assert found.traffic("32") - found.traffic("bf16") == 2 * found.values


def test_floor():
    machine, near = floor.measure(ONE)
    whole(machine)
    plain, joint = near.measured
    ratio = [figure.samples[0] / each.samples[0] for each, figure in zip(near.measured, near.figures, strict=True)]
    assert ratio[0] == pytest.approx(2 * ratio[1])  # two networks have twice the floor
    assert (plain.name, joint.name) == ("1 plain step", "DML, 2 peers")
