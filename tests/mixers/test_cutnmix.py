"""A box for each peer: of one area, of the same partners, and with one label that is right for all of them."""

import numpy as np
import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.plan import MixPlan, PerPeer
from metamixer.mixers.cutnmix import CutnMix
from tests.oracle import seeded

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 5, 0])
IMAGES = torch.arange(8.0)[:, None, None, None].expand(8, 1, 12, 10).clone()  # image b is full of b


def draw(mixer, n, images=IMAGES, **options):
    g = seeded()
    return [mixer(images, LABELS, generator=g, **options) for _ in range(n)]


def full_of_numbers(size):
    return torch.arange(8.0).view(8, 1, *[1] * len(size)).expand(8, 2, *size).clone()


@pytest.mark.parametrize("size", [(11,), (12, 10), (5, 4, 7)], ids=str)
@pytest.mark.parametrize("peers", [1, 2, 4])
def test_every_peer_has_the_label_of_its_image(peers, size):
    """The images tell by themselves whose pixels they hold; one set of labels has to be right for every peer."""
    images = full_of_numbers(size)
    shares = set()
    for plan in draw(CutnMix(probability=1.0, peers=peers), 20, images):
        (operation,) = plan.operations
        assert isinstance(operation, PerPeer)
        assert len(operation.pastes) == peers
        targets = plan.targets(LABELS, 6)
        for peer in range(peers):
            mixed = plan.at(3, peer).apply(images, 0)
            assert torch.equal(mixed[:, 0], mixed[:, 1])
            for b in range(8):
                held = mixed[b, 0].flatten().long()
                assert set(held.tolist()) <= {b, int(operation.pastes[0].partner[b])}
                counted = torch.bincount(LABELS[held], minlength=6) / len(held)
                torch.testing.assert_close(targets[b], counted)
        shares.add(float((plan.at(3).apply(images, 0) != images).float().mean()))
    assert len(shares) > 5


@pytest.mark.parametrize("alpha", [0.2, 1.0, 50.0])
def test_areas_agree_and_boxes_lie_inside(alpha):
    for plan in draw(CutnMix(alpha=alpha, probability=1.0, peers=3), 800):
        pastes = plan.operations[0].pastes
        for each in pastes:
            assert (each.low >= 0).all()
            assert (each.high <= torch.tensor([12, 10])).all()
            assert torch.equal(each.high - each.low, pastes[0].high - pastes[0].low)
            assert each.partner is pastes[0].partner


def test_places_differ_and_are_uniform():
    counts, same, boxes = np.zeros((2, 7)), 0, 0
    for plan in draw(CutnMix(alpha=1.0, probability=1.0), 6000):
        one, other = plan.operations[0].pastes
        if (one.high - one.low).tolist() == [6, 5]:  # then there are 7 places by 6
            boxes += 1
            same += int(torch.equal(one.low, other.low))
            counts[0, one.low[0]] += 1
            counts[1, other.low[0]] += 1
    assert boxes > 400
    assert same / boxes < 0.06  # 1 of 42
    for peer in counts:
        assert ((peer - boxes / 7) ** 2 / (boxes / 7)).sum() < 22.5  # chi-square, 6 degrees of freedom, 0.001


def test_the_area_follows_alpha():
    """The pasted share is 1 - lambda with lambda ~ Beta(alpha, alpha), but for the rounding of the sides."""

    def shares(alpha):
        plans = draw(CutnMix(alpha=alpha, probability=1.0), 1500, torch.zeros(8, 1, 96, 80))
        sides = torch.stack([(each.high - each.low) for plan in plans for each in plan.operations[0].pastes[:1]])
        return (sides.prod(1) / (96 * 80)).numpy()

    uniform, narrow, wide = shares(1.0), shares(100.0), shares(0.1)
    for quantile in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert abs(np.quantile(uniform, quantile) - quantile) < 0.04
    assert abs(narrow.mean() - 0.5) < 0.01
    assert narrow.std() < 0.06
    assert ((wide < 0.02) | (wide > 0.98)).mean() > 0.5


def test_partners_are_one_permutation_of_anyone():
    partners = np.array(
        [plan.operations[0].pastes[0].partner.tolist() for plan in draw(CutnMix(probability=1.0), 2000)]
    )
    assert (np.sort(partners, 1) == np.arange(8)).all()
    for sample in range(8):
        assert abs(np.bincount(partners[:, sample], minlength=8) / 2000 - 1 / 8).max() < 0.03


def test_one_seed_is_one_plan():
    one, other = (CutnMix(probability=1.0, peers=3)(IMAGES, LABELS, generator=seeded(4)) for _ in range(2))
    for a, b in zip(one.operations[0].pastes, other.operations[0].pastes, strict=True):
        assert torch.equal(a.low, b.low)
        assert torch.equal(a.high, b.high)
        assert torch.equal(a.partner, b.partner)
    another = CutnMix(probability=1.0, peers=3)(IMAGES, LABELS, generator=seeded(5))
    assert not torch.equal(another.targets(LABELS, 6), one.targets(LABELS, 6))


def test_probability_and_window():
    def frequency(progress=None, **options):
        return np.mean([len(plan.operations) for plan in draw(CutnMix(**options), 1000, progress=progress)])

    assert abs(frequency() - 0.5) < 0.06
    assert abs(frequency(probability=0.4) - 0.4) < 0.06
    assert frequency(probability=1.0, until=0.5, progress=0.5) == 0
    assert abs(frequency(probability=0.8, until=0.8, ramp=0.4, progress=0.7) - 0.2) < 0.06


@pytest.mark.parametrize(
    "setting",
    [{"alpha": 0.0}, {"probability": 2.0}, {"peers": 0}, {"until": 1.5}, {"ramp": 1.5}],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        CutnMix(**setting)


def test_features_without_axes_have_no_box():
    with pytest.raises(ValueError, match=r"spatial axes.*\(4, 7\)"):
        CutnMix(probability=1.0)(torch.zeros(4, 7), torch.zeros(4, dtype=torch.long))


class Shown(nn.Module):
    """Keeps the images that it was shown."""

    def __init__(self):
        super().__init__()
        self.stage, self.last, self.images = nn.Flatten(), nn.Linear(120, 6), None

    def forward(self, x):
        self.images = x.detach()
        return self.last(self.stage(x))


@pytest.mark.parametrize("shadows", [False, True])
def test_a_cohort_gives_each_peer_its_own_box_and_its_shadow_the_same(shadows):
    cohort = Cohort([Shown() for _ in range(3)], stages=["stage"], shadows=shadows)
    plan = CutnMix(probability=1.0, alpha=50.0, peers=3)(IMAGES, LABELS, generator=seeded(1))
    outputs = cohort(IMAGES, plan)
    pastes = plan.operations[0].pastes
    for index, peer in enumerate(cohort.peers):
        assert torch.equal(peer.images, pastes[index % 3](IMAGES))
        assert torch.equal(outputs.images[index], peer.images)
    assert not torch.equal(cohort.peers[0].images, cohort.peers[1].images)
    assert not torch.equal(cohort.peers[1].images, cohort.peers[2].images)
    assert torch.equal(cohort(IMAGES, MixPlan()).images[1], IMAGES)


def test_one_box_for_all_is_cutmix():
    plan = CutnMix(probability=1.0, peers=1)(IMAGES, LABELS, generator=seeded(1))
    first, second = (plan.at(3, peer).apply(IMAGES, 0) for peer in range(2))
    assert torch.equal(first, second)
