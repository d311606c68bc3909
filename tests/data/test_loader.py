"""Batches: every image once, the same from the middle as from the start, companions of the same class."""

import pytest
import torch

from metamixer.core.seeding import generator
from metamixer.core.types import Batch
from metamixer.data import Augment, CompanionTable, DataError, EvalLoader, TensorImages, TrainLoader, normalise

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


def test_batches_are_the_function_of_seed_epoch_and_number_that_they_always_were(images):
    """Old runs resume: the order, crops, flips and companions come from these seeds and no others."""
    augment, mean, std = Augment(pad=2), [0.1] * 3, [0.5] * 3
    order = torch.randperm(50, generator=generator(7, "order", 2))
    for views in (1, 3):
        made = TrainLoader(images, augment, mean, std, 8, 7, companions=True, views=views)
        for number, batch in enumerate(made.epoch(2)):
            rows = order[8 * number : 8 * number + 8]
            others = CompanionTable(images.labels).draw(rows, generator(7, "companions", 2, number))
            draw = generator(7, "augment", 2, number)
            assert torch.equal(batch.images, augment(images.fetch(rows), mean, std, draw))
            assert torch.equal(batch.companions, augment(images.fetch(others), mean, std, draw))


def test_without_views_there_are_none(images):
    assert next(loader(images).epoch(0)).views is None


def test_views_are_the_same_images_each_augmented_by_itself(images):
    plain = next(loader(images, PLAIN, views=3, batch_size=50).epoch(0))
    assert [torch.equal(which(view), which(plain.images)) for view in plain.views] == [True] * 3
    # All images alike: views that differ were cropped or flipped differently.
    pixels = torch.arange(36).byte().view(1, 1, 6, 6).expand(40, 1, 6, 6).clone()
    same = TensorImages(pixels, torch.zeros(40, dtype=torch.int64), ("a",))
    batch = next(loader(same, views=3, mean=[0.0], std=[1.0], batch_size=40, companions=True).epoch(0))
    assert batch.views[0] is batch.images
    assert len(batch.views) == 3
    shown = [*batch.views, batch.companions]
    for first in range(4):
        for second in range(first):
            assert (shown[first] != shown[second]).flatten(1).any(1).sum() > 30


def test_one_more_view_changes_no_other_and_a_start_in_the_middle_gives_the_same(images):
    two = list(loader(images, views=2, companions=True).epoch(3))
    three = list(loader(images, views=3, companions=True).epoch(3))
    rest = list(loader(images, views=3, companions=True).epoch(3, 4))
    for a, b in zip(two, three, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.companions, b.companions)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=False))
    for a, b in zip(three[4:], rest, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
    assert not torch.equal(three[0].views[1] - three[0].views[0], three[1].views[1] - three[1].views[0])


def balanced():
    """Five classes of 4 to 12 images; the value of a pixel says which image it is."""
    labels = torch.tensor([label for label in range(5) for _ in range(4 + 2 * label)])
    values = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 6, 6).clone()
    return TensorImages(values, labels, tuple("abcde"))


def test_batches_hold_as_many_images_of_each_of_their_classes():
    held = balanced()
    made = loader(held, PLAIN, batch_size=6, per_class=2, companions=True, views=2)
    assert len(made) == len(loader(held, batch_size=6)) == 6
    whole = list(made.epoch(1))
    assert len(whole) == 6
    for batch in whole:
        counts = torch.bincount(batch.labels, minlength=5)
        assert sorted(counts.tolist()) == [0, 0, 2, 2, 2]
        assert len(which(batch.images).unique()) == 6
        assert torch.equal(held.labels[which(batch.images)], batch.labels)
        assert torch.equal(held.labels[which(batch.companions)], batch.labels)
    assert all(same(a, b) for a, b in zip(map(tensors, whole[2:]), map(tensors, made.epoch(1, 2)), strict=True))
    assert not torch.equal(which(whole[0].images), which(next(made.epoch(2)).images))


def tensors(batch):
    """A batch with its views in a row, for ``same``."""
    return Batch(torch.stack([batch.images, *batch.views]), batch.labels, batch.companions)


@pytest.mark.parametrize("views", [1, 2])
def test_balanced_batches_from_the_middle_and_in_shares_are_those_of_the_whole_epoch(images, views):
    made = loader(images, PLAIN, sampler="balanced", companions=True, views=views)
    assert len(made) == len(loader(images))
    whole = list(made.epoch(2))
    seen = torch.cat([batch.labels for batch in whole])
    assert torch.bincount(seen).min() >= 14  # of 48, with two left out by the incomplete batch
    for batch in whole:
        assert torch.equal(images.labels[which(batch.images)], batch.labels)
        assert torch.equal(images.labels[which(batch.companions)], batch.labels)
    for start in (1, 4):
        assert all(same(a, b) for a, b in zip(map(shown, whole[start:]), map(shown, made.epoch(2, start)), strict=True))
    assert not torch.equal(which(whole[0].images), which(next(made.epoch(3)).images))
    for number in range(2):
        for batch, part in zip(whole, made.shared(number, 2).epoch(2), strict=True):
            assert torch.equal(part.images, batch.images[number::2])
            assert torch.equal(part.companions, batch.companions[number::2])
            assert torch.equal(part.whole, batch.labels)


def shown(batch):
    return Batch(torch.stack(batch.views or (batch.images,)), batch.labels, batch.companions)


def test_two_images_of_a_class_go_to_the_same_process():
    """Processes take every n-th image."""
    batch = next(loader(balanced(), batch_size=8, per_class=2).epoch(0))
    for rank in (0, 1):
        assert sorted(torch.bincount(batch.labels[rank::2], minlength=5).tolist()) == [0, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": 0}, "views=0: expected at least 1"),
        ({"sampler": "weighted"}, "sampler='weighted'; expected 'shuffle' or 'balanced'"),
        ({"sampler": "balanced", "per_class": 2}, "sampler='balanced' with per_class=2, whose batches are balanced"),
        ({"per_class": 0}, "per_class=0: expected at least 1"),
        ({"per_class": 3}, "batch_size=8 cannot hold per_class=3 .* expected batch_size=6"),
        ({"per_class": 2, "batch_size": 12}, "needs 6 classes, these images have 5; expected batch_size=10"),
        ({"per_class": 5, "batch_size": 10}, "the class 'a' has 4 images to train on, per_class=5 needs 5"),
    ],
    ids=str,
)
def test_classes_and_views_that_do_not_fit(changes, message):
    with pytest.raises(DataError, match=message):
        loader(balanced(), **changes)
