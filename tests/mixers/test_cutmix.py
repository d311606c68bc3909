import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamixer.core.plan import Paste
from metamixer.mixers import CutMix, SameClassCutMix
from tests.oracle import seeded

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 5, 0])  # classes 2 and 5 have one sample each
IMAGES = torch.arange(8.0)[:, None, None, None].expand(8, 1, 12, 10).clone()  # image b is full of b


def draw(mixer, n, **options):
    g = seeded()
    return [mixer(IMAGES, LABELS, generator=g, **options) for _ in range(n)]


@pytest.mark.parametrize("box", ["batch", "sample"])
@pytest.mark.parametrize("mixer", [CutMix, SameClassCutMix])
def test_what_is_in_the_images_is_in_the_labels(mixer, box):
    """The images tell by themselves whose pixels they hold; the labels have to say the same."""
    seen = set()
    for plan in draw(mixer(box=box, probability=1.0), 40):
        mixed, targets = plan.apply(IMAGES, 0), plan.targets(LABELS, 6)
        for b in range(8):
            counted = torch.zeros(6)
            for pixel in mixed[b].flatten().tolist():
                counted[LABELS[int(pixel)]] += 1 / 120
            torch.testing.assert_close(targets[b], counted)
            seen.add(len(mixed[b].unique()))
    assert seen == {1, 2}


def test_partners_of_cutmix_are_anyone():
    partners = np.array([plan.operations[0].partner.tolist() for plan in draw(CutMix(probability=1.0), 2000)])
    assert (np.sort(partners, 1) == np.arange(8)).all()
    for sample in range(8):
        assert abs(np.bincount(partners[:, sample], minlength=8) / 2000 - 1 / 8).max() < 0.03


def test_partners_of_one_class():
    partners = np.array([plan.operations[0].partner.tolist() for plan in draw(SameClassCutMix(probability=1.0), 1500)])
    assert (np.sort(partners, 1) == np.arange(8)).all()
    assert (LABELS.numpy()[partners] == LABELS.numpy()).all()
    assert set(partners[:, 2]) == {2}
    assert set(partners[:, 6]) == {6}
    assert set(partners[:, 1]) == {4}
    for sample in (0, 3, 5, 7):
        others = [b for b in (0, 3, 5, 7) if b != sample]
        counts = np.array([(partners[:, sample] == b).sum() for b in others])
        assert counts.sum() == 1500  # never itself
        assert ((counts - 500) ** 2 / 500).sum() < 13.8  # chi-square, 2 degrees of freedom, 0.001


def test_companions_are_pasted_row_by_row_and_labels_stay():
    companions = IMAGES + 100
    for box in ("batch", "sample"):
        areas = []
        for plan in draw(SameClassCutMix(probability=1.0, box=box), 60, companions=companions):
            mixed = plan.apply(IMAGES, 0)
            for b in range(8):
                assert set(mixed[b].unique().tolist()) <= {float(b), float(b + 100)}
            areas.append((mixed >= 100).float().mean((1, 2, 3)))
            assert torch.equal(plan.targets(LABELS, 6), torch.eye(6)[LABELS])
        areas = torch.stack(areas)
        assert bool((areas == areas[:, :1]).all()) == (box == "batch")
        assert 0.2 < areas.mean() < 0.6


def test_plain_cutmix_has_no_use_for_companions():
    for mixer in (CutMix(probability=1.0), SameClassCutMix(probability=1.0, partners="any")):
        (plan,) = draw(mixer, 1, companions=IMAGES + 100)
        assert plan.apply(IMAGES, 0).max() < 100


def test_any_partners_are_plain_cutmix():
    ours, plain = draw(SameClassCutMix(probability=1.0, partners="any"), 20), draw(CutMix(probability=1.0), 20)
    assert any(not torch.equal(plan.targets(LABELS, 6), torch.eye(6)[LABELS]) for plan in ours)
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(a.apply(IMAGES, 0), b.apply(IMAGES, 0))
        assert torch.equal(a.targets(LABELS, 6), b.targets(LABELS, 6))


@pytest.mark.parametrize("mixer", [CutMix, SameClassCutMix])
def test_the_area_follows_alpha(mixer):
    """Without the edges the pasted area is 1 - lambda, which alpha spreads."""

    def areas(alpha):
        plans = draw(mixer(alpha=alpha, probability=1.0), 1500)
        return np.array([float((op.high - op.low).prod()) / 120 for plan in plans for op in plan.operations])

    narrow, wide = areas(1000.0), areas(0.1)
    assert (wide == 0).mean() > 0.3
    assert narrow.min() > 0
    assert narrow.max() <= 0.5


@pytest.mark.parametrize("size", [(9,), (6, 5), (4, 3, 5)], ids=str)
@pytest.mark.parametrize(
    "mixer",
    [CutMix(probability=1.0), SameClassCutMix(probability=1.0), SameClassCutMix(probability=1.0, box="sample")],
    ids=str,
)
def test_signals_images_volumes(mixer, size):
    x = torch.arange(8.0).view(8, 1, *[1] * len(size)).expand(8, 2, *size).clone()
    mixed_any = False
    for seed in range(10):
        plan = mixer(x, LABELS, generator=seeded(seed))
        (operation,) = plan.operations
        assert isinstance(operation, Paste)
        assert operation.size == size
        mixed = plan.apply(x, 0)
        for b in range(8):  # nothing but own pixels and the partner's, at the same places in all channels
            assert set(mixed[b].unique().tolist()) <= {float(b), float(operation.partner[b])}
            assert torch.equal(mixed[b, 0], mixed[b, 1])
        mixed_any |= not torch.equal(mixed, x)
    assert mixed_any


@pytest.mark.parametrize("mixer", [CutMix, SameClassCutMix])
def test_probability_and_window(mixer):
    def frequency(progress=None, **options):
        return np.mean([len(plan.operations) for plan in draw(mixer(**options), 1000, progress=progress)])

    assert abs(frequency(probability=0.4) - 0.4) < 0.06
    assert frequency(probability=1.0, until=0.5, progress=0.5) == 0
    assert abs(frequency(probability=0.8, until=0.8, ramp=0.4, progress=0.7) - 0.2) < 0.06


@pytest.mark.parametrize("mixer", [CutMix, SameClassCutMix])
@pytest.mark.parametrize(
    "setting",
    [
        {"alpha": 0.0},
        {"alpha": 1e-3},
        {"alpha": float("inf")},
        {"probability": 2.0},
        {"box": "pixel"},
        {"until": 1.5},
        {"ramp": 1.5},
    ],
    ids=str,
)
def test_invalid_settings(mixer, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        mixer(**setting)


def test_invalid_partners():
    with pytest.raises(ValueError, match="partners='other'"):
        SameClassCutMix(probability=1.0, partners="other")


@pytest.mark.parametrize("mixer", [CutMix(probability=1.0), SameClassCutMix(probability=1.0)], ids=str)
def test_features_without_axes_have_no_box(mixer):
    with pytest.raises(ValueError, match=r"spatial axes.*\(4, 7\)"):
        mixer(torch.zeros(4, 7), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("mixer", [CutMix(probability=1.0), SameClassCutMix(probability=1.0)], ids=str)
def test_a_batch_of_one_stays(mixer):
    plan = mixer(IMAGES[:1], LABELS[:1])
    assert torch.equal(plan.apply(IMAGES[:1], 0), IMAGES[:1])
    assert plan.targets(LABELS[:1], 2).tolist() == [[1, 0]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=10),
    st.sampled_from(["batch", "sample"]),
    st.sampled_from(["same_class", "any"]),
    st.integers(0, 2**31),
)
def test_targets_are_distributions(labels, box, partners, seed):
    labels = torch.tensor(labels)
    plan = SameClassCutMix(probability=1.0, box=box, partners=partners)(
        torch.zeros(len(labels), 1, 6, 6), labels, generator=seeded(seed)
    )
    targets = plan.targets(labels, 5)
    assert torch.all(targets >= 0)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(labels)))
    if partners == "same_class":
        assert torch.equal(targets, torch.eye(5)[labels])
