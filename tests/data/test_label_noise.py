"""Wrong labels: as many as asked for, of the kind asked for, and in the training split alone."""

from dataclasses import replace

import pytest
import torch

from metamixer.config.recipe import Recipe
from metamixer.data import DataError, load, with_label_noise
from metamixer.runs.run import load_data


@pytest.fixture(scope="module")
def clean():
    return load("fashion-mini", train_limit=50)


def counts(before, after):
    """``(true, given)``: how many labels became which."""
    found = torch.zeros(10, 10, dtype=torch.int64)
    for true, given in zip(before.tolist(), after.tolist(), strict=True):
        found[true, given] += 1
    return found


def test_symmetric_noise_goes_to_every_other_class(clean):
    data = load("fashion-mini")
    table = counts(data.train.labels, with_label_noise(data, 0.4, "symmetric", 0).train.labels)
    assert (table.diagonal() == 540 - 216).all()
    wrong = table.clone().fill_diagonal_(0)
    assert (wrong.sum(1) == 216).all()
    expected = 216 / 9
    chi2 = ((wrong[~torch.eye(10, dtype=bool)] - expected).square() / expected).sum()
    assert chi2 < 125, "uniform over the nine others: chi-square with 80 degrees of freedom, 0.1 %"


def test_asymmetric_noise_follows_what_is_taken_for_what(clean):
    given = with_label_noise(clean, 0.2, "asymmetric", 3).train.labels
    table = counts(clean.train.labels, given)
    names = clean.classes
    for true, other in [("Shirt", "T-shirt/top"), ("Coat", "Pullover"), ("Sneaker", "Ankle boot")]:
        assert table[names.index(true), names.index(other)] == 10
    for kept in ("Bag", "Trouser", "Dress", "Ankle boot"):
        assert table[names.index(kept), names.index(kept)] == 50
    assert (table.diagonal() < 50).sum() == 6


def test_unknown_classes_are_taken_for_the_next_one(clean):
    data = replace(clean, classes=tuple("abcdefghij"))
    table = counts(clean.train.labels, with_label_noise(data, 1.0, "asymmetric", 0).train.labels)
    assert (table == 50 * torch.eye(10, dtype=torch.int64).roll(1, 1)).all()


def test_only_training_labels_and_the_same_ones_again(clean):
    noisy, again, other = (with_label_noise(clean, 0.2, "symmetric", seed) for seed in (0, 0, 1))
    assert torch.equal(noisy.train.labels, again.train.labels)
    assert not torch.equal(noisy.train.labels, other.train.labels)
    assert (noisy.train.labels != clean.train.labels).sum() == 100
    assert torch.equal(noisy.test.labels, clean.test.labels)
    assert torch.equal(noisy.val.labels, clean.val.labels)
    assert torch.equal(noisy.train.images, clean.train.images)
    assert "100 of 500 training labels made wrong (symmetric noise of 0.2, seed 0)" in noisy.notes
    assert with_label_noise(clean, 0.0, "symmetric", 0) is clean


def test_a_recipe_makes_the_same_noise(clean):
    recipe = Recipe.of({"data": {"name": "fashion-mini", "train_limit": 50, "label_noise": 0.2, "seed": 5}})
    wanted = with_label_noise(load("fashion-mini", train_limit=50, seed=5), 0.2, "symmetric", 5)
    assert torch.equal(load_data(recipe).train.labels, wanted.train.labels)


def test_shares_and_kinds_that_do_not_exist(clean):
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        with_label_noise(clean, 1.2, "symmetric", 0)
    with pytest.raises(DataError, match="symmetric or asymmetric"):
        with_label_noise(clean, 0.2, "both", 0)
