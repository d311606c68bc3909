"""Batches: every image once, the same from the middle as from the start, companions of the same class."""

import pytest
import torch

from metamixer.datasets import Augment, DataError, EvalLoader, TensorImages, TrainLoader, normalise

PLAIN = Augment(pad=0, flip=False)


@pytest.fixture
def images():
    """50 images whose pixels all say which image it is."""
    values = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1).expand(50, 3, 6, 6).clone()
    return TensorImages(values, torch.tensor([0] * 20 + [1] * 29 + [2]), ("a", "b", "c"))


def loader(images, augment=None, **changes):
    options = {"mean": [0.0] * 3, "std": [1 / 255] * 3, "batch_size": 8, "seed": 0} | changes
    return TrainLoader(images, augment or Augment(), **options)


def which(batch):
    return batch[:, 0, 0, 0].round().long()


def same(first, second):
    return all(
        torch.equal(a, b) if a is not None else b is None
        for a, b in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def test_an_epoch_has_every_image_once(images):
    batches = list(loader(images, PLAIN, batch_size=5).epoch(0))
    seen = torch.cat([which(batch.images) for batch in batches])
    assert sorted(seen.tolist()) == list(range(50))
    assert torch.equal(torch.cat([batch.labels for batch in batches]), images.labels[seen])
    assert all(batch.companions is None for batch in batches)


def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one(images):
    assert [len(batch) for batch in loader(images).epoch(0)] == [8] * 6
    assert len(loader(images)) == 6
    few = images.subset(torch.arange(5))
    assert [len(batch) for batch in loader(few).epoch(0)] == [5]
    assert len(loader(few)) == 1


@pytest.mark.parametrize("companions", [False, True])
def test_starting_in_the_middle_gives_the_same_batches(images, companions):
    whole = list(loader(images, companions=companions).epoch(3))
    for start in range(7):
        rest = list(loader(images, companions=companions).epoch(3, start))
        assert len(rest) == 6 - start
        assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_epochs_and_seeds_differ(images):
    first = next(loader(images).epoch(0))
    assert not torch.equal(first.images, next(loader(images).epoch(1)).images)
    assert not torch.equal(first.images, next(loader(images, seed=1).epoch(0)).images)


def test_companions_are_others_of_the_class(images):
    seen = set()
    for epoch in range(20):
        for batch in loader(images, PLAIN, companions=True).epoch(epoch):
            own, other = which(batch.images), which(batch.companions)
            assert torch.equal(images.labels[other], batch.labels)
            assert torch.equal(own == other, batch.labels == 2)  # the only image of class c is its own companion
            seen |= set(other.tolist())
    assert seen == set(range(50))


def test_companions_change_nothing_else_and_are_augmented_by_themselves():
    # All images alike: a companion that differs was cropped or flipped differently.
    pixels = torch.arange(36).byte().view(1, 1, 6, 6).expand(40, 1, 6, 6).clone()
    images = TensorImages(pixels, torch.zeros(40, dtype=torch.int64), ("a",))
    options = {"mean": [0.0], "std": [1.0], "batch_size": 40}
    alone = next(loader(images, **options).epoch(0))
    both = next(loader(images, companions=True, **options).epoch(0))
    assert torch.equal(alone.images, both.images)
    assert (both.images != both.companions).flatten(1).any(1).sum() > 30


def test_no_global_randomness_is_used(images):
    state = torch.get_rng_state()
    list(loader(images, companions=True).epoch(0))
    list(EvalLoader(images, [0.0] * 3, [1.0] * 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_goes_through_all_in_order_again_and_again(images):
    batches = EvalLoader(images, [0.1] * 3, [0.5] * 3, batch_size=16)
    for _ in range(2):
        found = list(batches)
        assert len(found) == len(batches) == 4
        assert torch.equal(torch.cat([b.images for b in found]), normalise(images.images, [0.1] * 3, [0.5] * 3))
        assert torch.equal(torch.cat([b.labels for b in found]), images.labels)


def test_wrong_settings_are_refused(images):
    with pytest.raises(DataError, match="batch_size=0"):
        loader(images, batch_size=0)
    with pytest.raises(DataError, match="no images"):
        loader(images.subset(torch.arange(0)))
    with pytest.raises(DataError, match="6 batches"):
        next(loader(images).epoch(0, start=7))
