"""Held-out splits, few samples and notes, counted by hand."""

import pytest
import torch

from metamixer.data import TensorImages
from metamixer.data.errors import DataError
from metamixer.data.splits import assemble, without


def numbered(count, classes=("a", "b", "c"), first=0, channels=1):
    """Every image has its number in each pixel."""
    pixels = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, 2, 3)
    return TensorImages(pixels.clone(), torch.arange(count) % len(classes), classes)


def numbers(images):
    return images.images[:, 0, 0, 0].tolist()


def test_a_validation_split_is_held_out_of_every_class():
    data = assemble("toy", numbered(60), None, None, val_share=0.2, seed=0)
    assert sorted(numbers(data.train) + numbers(data.val)) == list(range(60))
    assert torch.bincount(data.val.labels).tolist() == [4, 4, 4]
    for split in (data.train, data.val):
        assert [number % 3 for number in numbers(split)] == split.labels.tolist()
    assert data.notes == ("12 of 60 training images held out for validation",)
    again, other = (assemble("toy", numbered(60), None, None, val_share=0.2, seed=seed) for seed in (0, 1))
    assert numbers(again.val) == numbers(data.val) != numbers(other.val)


def test_a_given_validation_split_is_kept():
    val = numbered(6, first=100)
    data = assemble("toy", numbered(60), val, None, val_share=0.2, seed=0)
    assert data.val is val
    assert len(data.train) == 60
    assert assemble("toy", numbered(60), None, None, val_share=0.0, seed=0).val is None


def test_few_samples_leave_the_validation_split_as_it_is():
    whole = assemble("toy", numbered(60), None, None, val_share=0.2, seed=0)
    few = assemble("toy", numbered(60), None, None, val_share=0.2, seed=0, train_limit=5)
    assert numbers(few.val) == numbers(whole.val)
    assert torch.bincount(few.train.labels).tolist() == [5, 5, 5]
    assert set(numbers(few.train)) < set(numbers(whole.train))
    assert few.notes[-1] == "15 of 48 training images kept: at most 5 per class"


def test_mean_and_deviation_are_those_of_the_training_pixels():
    images = numbered(50, channels=3)
    images.images[:, 1] = 255
    images.images[:, 2, 0] = 0
    data = assemble("toy", images, None, None, val_share=0.0, seed=0)
    for channel in range(3):
        values = [value / 255 for value in images.images[:, channel].flatten().tolist()]
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        assert data.mean[channel] == pytest.approx(mean, abs=1e-6)
        if channel != 1:  # a channel without spread is divided by something else than 0
            assert data.std[channel] == pytest.approx(spread, rel=1e-3)
    assert data.std[1] > 0
    assert (data.channels, data.size) == (3, (2, 3))


def test_copies_between_splits_are_counted_only_when_asked_for():
    val, test = numbered(6, first=57), numbered(9, first=200)
    for compare in (None, lambda part, images: images):
        data = assemble("toy", numbered(60), val, test, val_share=0.0, seed=0, prepare=compare)
        copies = [note for note in data.notes if "pixel for pixel" in note]
        assert copies == ["3 validation images found, pixel for pixel, in the training images"] * (compare is not None)


def test_classes_that_a_split_lacks():
    assert without("testing", None) == without("testing", numbered(3)) == ()
    few = numbered(9).subset(torch.tensor([0, 3]))
    (note,) = without("testing", few)
    assert note.startswith("no image for testing of ")
    assert "b" in note
    assert "c" in note


@pytest.mark.parametrize(
    ("images", "message"),
    [(numbered(4, ("a",)), "toy: 1 class is nothing to learn"), (numbered(0), "toy: no training images")],
)
def test_nothing_to_learn(images, message):
    with pytest.raises(DataError, match=message):
        assemble("toy", images, None, None, val_share=0.1, seed=0)


def test_what_is_passed_on():
    skipped = (("a.jpg", "empty"),)
    data = assemble(
        "toy", numbered(9), None, numbered(3), val_share=0, seed=0, mirror=False, notes=("x",), skipped=skipped
    )
    assert (data.name, data.mirror, data.notes, data.skipped) == ("toy", False, ("x",), skipped)
    moved = data.to("meta")
    assert {moved.train.images.device.type, moved.test.images.device.type} == {"meta"}
    assert moved.val is None
