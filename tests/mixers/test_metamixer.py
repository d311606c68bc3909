import numpy as np
import pytest
import torch

from metamixer.core.plan import Blend, Paste
from metamixer.mixers import ManifoldMixup, MetaMixer, SameClassCutMix
from tests.oracle import seeded

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
IMAGES = torch.zeros(8, 3, 16, 16)


def full(**settings):
    """MetaMixer on every batch, whatever the defaults are."""
    return MetaMixer(**{"local_probability": 1.0, "global_probability": 1.0, **settings})


def draw(mixer, n, **options):
    g = seeded()
    return [mixer(IMAGES, LABELS, generator=g, **options) for _ in range(n)]


def ingredients(plan, images):
    """Which of the images, each of which fills a channel of its own, take part in every mixed sample."""
    mixed = plan.at(3).apply(images, 0)
    return [set(sample.sum((1, 2)).nonzero().flatten().tolist()) for sample in mixed]


@pytest.mark.parametrize("box", ["batch", "sample"])
@pytest.mark.parametrize("companions", [False, True], ids=["in the batch", "companions"])
def test_four_distinct_images_from_two_classes(companions, box):
    """Figure 1 of the paper. Images 0 to 7 are the batch, 8 to 15 their companions."""
    channels = torch.eye(16)[..., None, None].expand(16, 16, 16, 16)
    classes = LABELS.repeat(2).tolist()
    mixer = full(local_alpha=5.0, global_alpha=5.0, stages=(0,), box=box)  # no share at the ends
    pairs = 0
    for seed in range(25):
        plan = mixer(channels[:8], LABELS, companions=channels[8:] if companions else None, generator=seeded(seed))
        paste, blend = plan.operations
        targets = plan.targets(LABELS, 3)
        for b, found in enumerate(ingredients(plan, channels[:8])):
            other = int(blend.partner[b])
            mates = (b + 8, other + 8) if companions else (int(paste.partner[b]), int(paste.partner[other]))
            assert found <= {b, other, *mates}
            assert {classes[i] for i in found} == {classes[b], classes[other]}
            if classes[b] != classes[other]:
                pairs += 1
                assert len(found) == 4
                assert sorted(classes[i] for i in found) == sorted(
                    [classes[b], classes[b], classes[other], classes[other]]
                )
                assert sorted(targets[b].tolist())[0] == 0
                assert float(targets[b, classes[b]]) == pytest.approx(float(blend.lam))
    assert pairs > 80


def test_the_halves_in_their_order():
    for plan in draw(full(), 20):
        local, globally = plan.operations
        assert isinstance(local, Paste)
        assert isinstance(globally, Blend)
        assert local.stage == 0
        assert 0 <= globally.stage < 1
        assert torch.equal(LABELS[local.partner], LABELS)
        one_hot = torch.eye(3)[LABELS]
        lam = float(globally.lam)
        torch.testing.assert_close(plan.targets(LABELS, 3), lam * one_hot + (1 - lam) * one_hot[globally.partner])


def test_every_setting_reaches_its_half():
    mixer = MetaMixer(
        local_alpha=0.3, local_probability=0.4, partners="any", box="sample", global_alpha=0.6, global_probability=0.7,
        stages=(1, 2), stage_draws=2, lam="sample", until=0.8, ramp=0.2,
    )  # fmt: skip
    assert mixer.local_half == SameClassCutMix(
        alpha=0.3, probability=0.4, partners="any", box="sample", until=0.8, ramp=0.2
    )
    assert mixer.global_half == ManifoldMixup(
        alpha=0.6, probability=0.7, stages=(1, 2), stage_draws=2, lam="sample", until=0.8, ramp=0.2
    )


def test_probabilities_of_the_halves_are_independent():
    plans = draw(MetaMixer(local_probability=0.3, global_probability=0.6), 1500)
    local = np.array([any(isinstance(op, Paste) for op in plan.operations) for plan in plans])
    globally = np.array([any(isinstance(op, Blend) for op in plan.operations) for plan in plans])
    assert abs(local.mean() - 0.3) < 0.05
    assert abs(globally.mean() - 0.6) < 0.05
    assert abs((local & globally).mean() - 0.18) < 0.04


def test_local_and_global_alone():
    assert {type(op) for plan in draw(full(global_probability=0.0), 50) for op in plan.operations} == {Paste}
    assert {type(op) for plan in draw(full(local_probability=0.0), 50) for op in plan.operations} == {Blend}
    assert all(len(plan.operations) == 2 for plan in draw(full(), 50))


def test_stages_are_the_images_and_all_boundaries_but_the_last():
    drawn = [plan.at(3).operations[1].stage for plan in draw(full(), 1500)]
    counts = np.bincount(drawn)
    assert len(counts) == 3
    assert ((counts - 500) ** 2 / 500).sum() < 13.8  # chi-square, 2 degrees of freedom, 0.001


def test_shares_of_alpha_one_are_uniform_and_independent():
    plans = draw(full(local_alpha=1.0, global_alpha=1.0), 2000)
    lam = np.sort([float(plan.operations[1].lam) for plan in plans])
    assert np.abs(lam - np.linspace(0, 1, 2000)).max() < 1.95 / 2000**0.5
    area = np.array([float((p.operations[0].high - p.operations[0].low).prod()) / 256 for p in plans])
    assert abs(np.corrcoef(lam, area)[0, 1]) < 0.08


def test_any_partners_mix_four_classes_by_area():
    mixer, labels = full(partners="any", local_alpha=5.0, global_alpha=5.0, stages=(0,)), torch.arange(8)
    channels = torch.eye(8)[..., None, None].expand(8, 8, 16, 16)
    most = 0
    for seed in range(5):
        plan = mixer(channels, labels, generator=seeded(seed))
        targets = plan.targets(labels, 8)
        torch.testing.assert_close(plan.apply(channels, 0).mean((2, 3)), targets)
        most = max(most, int((targets > 0).sum(1).max()))
    assert most == 4


def test_a_window_stops_both_halves():
    mixer = full(until=0.8, ramp=0.4)
    assert all(len(plan.operations) == 2 for plan in draw(mixer, 30, progress=0.3))
    assert not any(plan.operations for plan in draw(mixer, 30, progress=0.8))
    halfway = [len(plan.operations) for plan in draw(mixer, 1000, progress=0.6)]
    assert abs(np.mean(halfway) - 1.0) < 0.1


@pytest.mark.parametrize(
    "setting",
    [
        {"local_alpha": 0.0},
        {"global_alpha": -1.0},
        {"local_probability": 2},
        {"global_probability": -1},
        {"partners": "none"},
        {"box": "image"},
        {"stages": ()},
        {"stage_draws": 0},
        {"lam": 1},
        {"until": 2},
    ],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"^{next(iter(setting))}="):
        MetaMixer(**setting)


def test_labels_of_one_class_only():
    plan = full()(IMAGES, torch.full((8,), 2), generator=seeded())
    torch.testing.assert_close(plan.targets(torch.full((8,), 2), 3), torch.tensor([0.0, 0, 1]).expand(8, 3))
    assert not any(int(partner) == b for b, partner in enumerate(plan.operations[0].partner))


def test_a_batch_of_one_stays():
    x = torch.randn(1, 1, 8, 8)
    plan = full(stages=(0,))(x, torch.tensor([1]))
    assert torch.equal(plan.apply(x, 0), x)
    assert plan.targets(torch.tensor([1]), 2).tolist() == [[0, 1]]
