"""Stratified splits, few samples and companions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamixer.data import CompanionTable, DataError, limit_per_class, split
from metamixer.data.class_sampling import ClassBatches, balanced_order, imbalance

labels_of = st.lists(st.integers(0, 6), min_size=1, max_size=60).map(lambda values: torch.tensor(values))


@settings(deadline=None)
@given(labels=labels_of, share=st.floats(0, 0.9), seed=st.integers(0, 3))
def test_split_is_a_stratified_partition(labels, share, seed):
    kept, held = split(labels, share, seed)
    assert torch.cat([kept, held]).sort().values.tolist() == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    for label in labels.unique():
        count = int((labels == label).sum())
        given_away = int((labels[held] == label).sum())
        assert given_away <= count - 1
        assert abs(given_away - count * share) <= 1
    assert len(held) <= round(share * len(labels))


def test_split_has_the_right_size_where_no_class_could_give_one_alone():
    labels = torch.arange(100).repeat(4)
    kept, held = split(labels, 0.1, seed=0)
    assert len(held) == 40
    assert labels[held].unique().numel() == 40
    assert labels[kept].unique().numel() == 100


def test_split_is_seeded_and_random():
    labels = torch.arange(10).repeat(50)
    assert torch.equal(split(labels, 0.2, 1)[1], split(labels, 0.2, 1)[1])
    assert not torch.equal(split(labels, 0.2, 1)[1], split(labels, 0.2, 2)[1])
    hits = torch.zeros(500)
    for seed in range(300):
        hits[split(labels, 0.2, seed)[1]] += 1
    # Binomial with 300 draws of probability 0.2 for every image: mean 60, sd 6.9.
    assert 60 - 5 * 6.9 < hits.min() <= hits.max() < 60 + 5 * 6.9


def test_shares_out_of_range_are_refused():
    for share in (-0.1, 1.0):
        with pytest.raises(DataError, match="cannot be held out"):
            split(torch.zeros(4, dtype=torch.int64), share, 0)


def test_limit_per_class_takes_all_there_are():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] * 5)
    chosen = limit_per_class(labels, 4, seed=0)
    assert torch.bincount(labels[chosen]).tolist() == [4, 2, 4]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert not torch.equal(chosen, limit_per_class(labels, 4, seed=1))
    with pytest.raises(DataError, match="limit of 0"):
        limit_per_class(labels, 0, seed=0)


@settings(deadline=None)
@given(labels=labels_of, seed=st.integers(0, 100))
def test_a_companion_is_another_of_the_class(labels, seed):
    table = CompanionTable(labels)
    indices = torch.arange(len(labels))
    companions = table.draw(indices, torch.Generator().manual_seed(seed))
    assert torch.equal(labels[companions], labels)
    alone = torch.bincount(labels)[labels] == 1
    assert torch.equal(companions == indices, alone)
    assert table.alone == int(alone.sum())


def test_companions_are_uniform_over_the_others():
    labels = torch.tensor([3, 0, 3, 3, 0, 3, 3, 1])
    draws = CompanionTable(labels).draw(torch.full((8000,), 3), torch.Generator().manual_seed(0))
    counts = torch.bincount(draws, minlength=8)
    others = [0, 2, 5, 6]
    assert counts.sum() == counts[others].sum()
    chi2 = float(((counts[others] - 2000.0) ** 2 / 2000).sum())
    assert chi2 < 16.3  # 99.9 % of a chi-square with 3 degrees of freedom


def test_companions_draw_from_the_given_generator_alone():
    state = torch.get_rng_state()
    table = CompanionTable(torch.arange(100) % 5)
    first = table.draw(torch.arange(50), torch.Generator().manual_seed(1))
    assert torch.equal(first, table.draw(torch.arange(50), torch.Generator().manual_seed(1)))
    assert torch.equal(torch.get_rng_state(), state)


def test_images_of_a_class_are_dealt_until_used_up():
    """Seven images, two at a time: three batches have six different ones, then they are shuffled anew."""
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 2)
    batches = ClassBatches(labels, ("a", "b", "c"), batch_size=6, per_class=2)  # all classes in every batch
    drawn = batches.draw(9, torch.Generator().manual_seed(0))
    assert drawn.shape == (9, 6)
    hands = [[row for row in batch.tolist() if row < 7] for batch in drawn]
    for start in (0, 3, 6):
        assert len({row for hand in hands[start : start + 3] for row in hand}) == 6
    assert len({row for hand in hands for row in hand}) == 7
    for batch in drawn:
        assert len(set(batch.tolist())) == 6
        assert labels[batch[:3]].tolist() == labels[batch[3:]].tolist()


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(3, 9), min_size=3, max_size=8),
    per_class=st.integers(1, 3),
    count=st.integers(1, 3),
    batches=st.integers(1, 6),
    seed=st.integers(0, 100),
)
def test_batches_have_so_many_of_so_many_classes(counts, per_class, count, batches, seed):
    labels = torch.cat([torch.full((n,), 2 * label) for label, n in enumerate(counts)])[torch.randperm(sum(counts))]
    names = [str(label) for label in range(2 * len(counts))]  # every other class has no images
    made = ClassBatches(labels, names, count * per_class, per_class)
    drawn = made.draw(batches, torch.Generator().manual_seed(seed))
    assert torch.equal(drawn, made.draw(batches, torch.Generator().manual_seed(seed)))
    for batch in drawn:
        assert len(set(batch.tolist())) == count * per_class
        found = torch.bincount(labels[batch])
        assert found[found > 0].tolist() == [per_class] * count


def test_classes_are_drawn_alike_whatever_their_size():
    labels = torch.tensor([0] * 90 + [1] * 6 + [2] * 4 + [3] * 4)
    drawn = ClassBatches(labels, tuple("abcd"), 4, 2).draw(3000, torch.Generator().manual_seed(0))
    counts = torch.bincount(labels[drawn[:, :2]].flatten())
    # Each class is in half of the batches: mean 1500, sd 27.
    assert 1500 - 5 * 27.4 < counts.min() <= counts.max() < 1500 + 5 * 27.4


@settings(deadline=None)
@given(labels=labels_of, seed=st.integers(0, 100))
def test_a_balanced_order_has_as_many_images_of_each_class(labels, seed):
    order = balanced_order(labels, torch.Generator().manual_seed(seed))
    assert len(order) == len(labels)
    present = labels.unique()
    counts = torch.stack([(labels[order] == label).sum() for label in present])
    assert counts.max() - counts.min() <= 1
    for label, count in zip(present, counts, strict=True):
        times = torch.bincount(order, minlength=len(labels))[labels == label]
        assert times.sum() == count
        assert times.max() - times.min() <= 1  # none again before all others had their turn


def test_a_balanced_order_is_random_in_each_class_and_over_them():
    labels = torch.tensor([0] * 90 + [1] * 10)
    drawn = [balanced_order(labels, torch.Generator().manual_seed(seed)) for seed in range(400)]
    times = sum(torch.bincount(order, minlength=100) for order in drawn)
    assert (times[90:] == 400 * 5).all()  # 50 of 10 images each time
    # Binomial with 400 draws of probability 50 / 90: mean 222, sd 9.9.
    assert 222 - 5 * 9.9 < times[:90].min() <= times[:90].max() < 222 + 5 * 9.9
    first = torch.stack([labels[order[:10]] for order in drawn]).float().mean()
    assert first == pytest.approx(0.5, abs=5 * 0.5 / 4000**0.5)


def test_imbalance_is_reported_above_a_ratio_of_five():
    assert imbalance(("a", "b\n", "c"), (51, 10, 30)) == r"classes differ by more than 5 times: 51 of a, 10 of b\n"
    assert imbalance(("a", "b"), (50, 10)) is None
    assert imbalance(("a", "b"), (1, 0)) == "classes differ by more than 5 times: 1 of a, 0 of b"
    assert imbalance((), ()) is None
