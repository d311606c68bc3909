"""Mixers of one's own: with the call written out, and by ``draw`` alone."""

from dataclasses import dataclass

import pytest
import torch

from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import Batch
from metamixer.losses import DML
from metamixer.mixers import BaseMixer, Draw, ManifoldMixup, Mixup
from metamixer.training.train_step import train_step
from tests import toys

IMAGES, LABELS = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 2])


def half(generator):
    return MixPlan((Blend(torch.tensor(0.5), torch.randperm(4, generator=generator)),))


@dataclass(frozen=True)
class WrittenOut:
    def __call__(self, images, labels, *, companions=None, generator=None, progress=None):
        return half(generator)


@dataclass(frozen=True)
class Derived(BaseMixer):
    def draw(self, draw):
        return half(draw.generator)


@pytest.mark.parametrize("mixer", [WrittenOut(), Derived()], ids=str)
def test_mixers_of_ones_own_take_a_step(mixer):
    step = train_step(toys.cohort(), mixer, DML(), Batch(IMAGES, LABELS), torch.Generator().manual_seed(3))
    wanted = half(torch.Generator().manual_seed(3)).targets(LABELS, step.targets.shape[1])
    assert torch.equal(step.targets, wanted)


def test_the_arguments_of_the_call_arrive():
    seen = []

    class Looking(BaseMixer):
        def draw(self, draw):
            seen.append(draw)
            return MixPlan()

    companions, generator = IMAGES + 1, torch.Generator()
    Looking()(IMAGES, LABELS, companions=companions, generator=generator, progress=0.5)
    Looking()(IMAGES, LABELS)
    given = [[id(value) for value in vars(draw).values()] for draw in seen]
    assert given[0] == [id(value) for value in (IMAGES, LABELS, companions, generator, seen[0].progress)]
    assert seen[0].progress == 0.5
    assert seen[1] == Draw(IMAGES, LABELS, None, None, None)
    assert not Looking().wants_companions


def test_what_mixup_is():
    for seed in range(20):
        one, other = (
            mixer(IMAGES, LABELS, generator=torch.Generator().manual_seed(seed)).operations[0]
            for mixer in (Mixup(alpha=0.3), ManifoldMixup(alpha=0.3, stages=(0,)))
        )
        assert (one.lam, one.partner.tolist(), one.stage) == (other.lam, other.partner.tolist(), other.stage)
