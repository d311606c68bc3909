"""Scores against scikit-learn and torchmetrics, and where the answer is known."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, recall_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from metamixer.metrics.classification import accuracy, brier, confusion, nll, per_class, top_k


def draw(count=400, classes=7, seed=0, scale=2.0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    logits = scale * torch.randn(count, classes, generator=g, dtype=torch.float64) + torch.eye(classes)[labels]
    return logits.log_softmax(1), labels


@pytest.mark.parametrize("seed", range(3))
def test_as_scikit_learn_counts(seed):
    logs, labels = draw(seed=seed)
    shares, y = logs.exp().numpy(), labels.numpy()
    votes = shares.argmax(1)
    names = np.arange(7)
    assert accuracy(logs, labels) == pytest.approx(accuracy_score(y, votes))
    assert top_k(logs, labels) == pytest.approx(top_k_accuracy_score(y, shares, k=5, labels=names))
    assert nll(logs, labels) == pytest.approx(log_loss(y, shares, labels=names))
    assert confusion(logs, labels).tolist() == confusion_matrix(y, votes, labels=names).tolist()
    assert per_class(logs, labels) == pytest.approx(recall_score(y, votes, average=None).tolist())
    one_hot = np.eye(7)[y]
    by_hand = sum(sum((p - t) ** 2 for p, t in zip(a, b, strict=True)) for a, b in zip(shares, one_hot, strict=True))
    assert brier(logs, labels) == pytest.approx(by_hand / len(y))


def test_as_torchmetrics_counts():
    logs, labels = draw(seed=5)
    theirs = multiclass_accuracy(logs.exp(), labels, 7, average="micro", top_k=5)
    assert top_k(logs, labels) == pytest.approx(float(theirs))
    theirs = multiclass_accuracy(logs.exp(), labels, 7, average="none")
    assert per_class(logs, labels) == pytest.approx(theirs.tolist())


def test_the_brier_score_of_two_classes_is_twice_that_of_one():
    from sklearn.metrics import brier_score_loss

    logs, labels = draw(classes=2)
    assert brier(logs, labels) == pytest.approx(2 * brier_score_loss(labels.numpy(), logs.exp()[:, 1].numpy()))


def test_all_right_and_all_wrong():
    labels = torch.tensor([0, 1, 2])
    sure = torch.full((3, 3), -math.inf).scatter(1, labels[:, None], 0.0)
    assert (accuracy(sure, labels), nll(sure, labels), brier(sure, labels)) == (1, 0, 0)
    wrong = sure.roll(1, 1)
    assert (accuracy(wrong, labels), nll(wrong, labels), brier(wrong, labels)) == (0, math.inf, 2)


def test_what_is_not_there_is_none():
    logs, labels = draw(classes=5)
    assert top_k(logs, labels) is None
    assert per_class(logs[labels > 0], labels[labels > 0])[0] is None


def test_a_small_loss_is_not_lost():
    logs = torch.tensor([[0.0, -30.0]], dtype=torch.float64).log_softmax(1)
    assert nll(logs, torch.tensor([0])) == pytest.approx(math.exp(-30), rel=1e-2)
    assert nll(torch.tensor([[0.0, -200.0]]).log_softmax(1), torch.tensor([1])) == 200


@pytest.mark.parametrize(
    ("shape", "labels", "message"),
    [((3, 2), [0, 1], r"\(N, C\) and \(N,\)"), ((0, 2), [], "no images"), ((2, 2), [0, 2], "labels from 0 to 2")],
)
def test_what_does_not_fit_is_said(shape, labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy(torch.zeros(shape), torch.tensor(labels, dtype=torch.int64))
