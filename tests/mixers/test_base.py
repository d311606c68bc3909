"""Mixers of one's own: with the call written out, and by ``draw`` alone."""

from dataclasses import dataclass

import pytest
import torch

from metamixer import CutMix, CutnMix, ManifoldMixup, MetaMixer, Mixup, SameClassCutMix
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import Batch
from metamixer.losses import DML
from metamixer.mixers import BaseMixer, Draw
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
    Looking()(IMAGES, LABELS, companions=companions, generator=generator, progress=0.5, strength=0.25)
    Looking()(IMAGES, LABELS)
    given = [id(value) for value in vars(seen[0]).values()]
    assert given[:4] == [id(value) for value in (IMAGES, LABELS, companions, generator)]
    assert (seen[0].progress, seen[0].strength) == (0.5, 0.25)
    assert seen[1] == Draw(IMAGES, LABELS, None, None, None)
    assert not Looking().wants_companions


def test_what_mixup_is():
    for seed in range(20):
        one, other = (
            mixer(IMAGES, LABELS, generator=torch.Generator().manual_seed(seed)).operations[0]
            for mixer in (Mixup(alpha=0.3), ManifoldMixup(alpha=0.3, stages=(0,)))
        )
        assert (one.lam, one.partner.tolist(), one.stage) == (other.lam, other.partner.tolist(), other.stage)


WINDOWED = {
    "mixup": Mixup,
    "cutmix": CutMix,
    "cutnmix": CutnMix,
    "manifold": ManifoldMixup,
    "same class": SameClassCutMix,
    "metamixer": MetaMixer,
}


def plans(mixer, count=60, **given):
    return [mixer(IMAGES, LABELS, generator=torch.Generator().manual_seed(seed), **given) for seed in range(count)]


@pytest.mark.parametrize("name", WINDOWED)
def test_strength_scales_the_probabilities(name):
    """A strength is the same plans as probabilities that much smaller, whoever gives it."""
    kind = WINDOWED[name]
    probabilities = {key: 0.8 for key in kind.__dataclass_fields__ if key.endswith("probability")}
    weaker = dict.fromkeys(probabilities, 0.8 * 0.3)
    wanted = [repr(plan) for plan in plans(kind(**weaker))]
    assert [repr(plan) for plan in plans(kind(**probabilities, strength=0.3))] == wanted
    assert [repr(plan) for plan in plans(kind(**probabilities, strength="auto"), strength=0.3)] == wanted
    full = [repr(plan) for plan in plans(kind(**probabilities))]
    assert [repr(plan) for plan in plans(kind(**probabilities, strength="auto"))] == full != wanted
    assert [repr(plan) for plan in plans(kind(**probabilities), strength=0.3)] == full, "a number of its own counts"
    for without in (plans(kind(strength=0)), plans(kind(strength="auto"), strength=0.0)):
        assert without == [MixPlan()] * 60


@pytest.mark.parametrize("wrong", [-0.1, 1.1, "Auto", None, True])
def test_strengths_that_do_not_exist(wrong):
    with pytest.raises(ValueError, match=r"strength=.*: input should be a number in \[0, 1\] or auto"):
        CutMix(strength=wrong)
    with pytest.raises(RecipeError, match=r"^mixer\.strength: input should be a number in \[0, 1\] or auto, not"):
        Recipe.of({"mixer": {"name": "mixup", "strength": wrong}})


def test_strength_is_part_of_a_checksum_only_where_it_says_something():
    digests = [Recipe.of({"mixer": {"name": "mixup", **own}}).digest for own in ({}, {"strength": 1})]
    digests += [Recipe.of({"mixer": {"name": "mixup", "strength": strength}}).digest for strength in (0.5, "auto")]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
