"""The averages over classes against scikit-learn, also where a class has no image or is never named."""

import json
import warnings

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from metamixer.metrics.network_scores import Score, score


def few_and_many(classes, named, seed):
    """Log-probabilities and labels of classes of very different sizes; only the first ``named`` are ever named."""
    g = torch.Generator().manual_seed(seed)
    sizes = [0 if k == 2 else 3**k for k in range(classes)]
    labels = torch.repeat_interleave(torch.arange(classes), torch.tensor(sizes))
    logits = torch.randn(len(labels), classes, generator=g) + 1.5 * torch.eye(classes)[labels]
    logits[:, named:] -= 50
    return logits.log_softmax(1), labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("named", [5, 4, 2])
def test_as_scikit_learn_averages(named, seed):
    logs, labels = few_and_many(5, named, seed)
    found = score("a", "peer", logs, labels)
    votes = logs.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class is named which no image has
        expected = balanced_accuracy_score(labels, votes)
    assert found.balanced_accuracy == pytest.approx(expected)
    assert found.macro_f1 == pytest.approx(f1_score(labels, votes, average="macro", zero_division=0))
    assert found.accuracy != pytest.approx(found.balanced_accuracy, abs=0.01)
    written = json.loads(json.dumps(found.as_dict()))
    assert (written["balanced_accuracy"], written["macro_f1"]) == (found.balanced_accuracy, found.macro_f1)


def test_quick_scores_have_no_averages():
    assert (Score("a", 0.5).balanced_accuracy, Score("a", 0.5).macro_f1) == (None, None)
