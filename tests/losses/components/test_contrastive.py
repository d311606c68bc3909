"""The shared parts of the contrastive losses against loops, and where their values are known."""

import math

import pytest
import torch

from metamixer.losses.components.contrastive import contrast, embed, over_others, positives, projector, similarities
from metamixer.losses.functional import row_divergence
from tests.losses.slow_contrast import kl_rows, matrix, project, same_gradients, supervised
from tests.oracle import draw


def one_hot(*labels, classes=3):
    return torch.eye(classes, dtype=torch.float64)[list(labels)]


def test_rows_are_the_slow_loops():
    anchors, keys = draw(2, 5, 4).requires_grad_(), draw(2, 5, 4, seed=1).requires_grad_()
    targets = draw(5, 3, seed=2).softmax(-1)
    pairs = similarities(anchors, keys, 0.3)
    hard, soft = contrast(pairs, positives(targets)), row_divergence(pairs.mT, pairs, 3.0)
    assert hard.shape == soft.shape == (2, 5)
    for n in range(2):
        rows = matrix(list(anchors[n]), list(keys[n]), 0.3)
        wanted = supervised(rows, targets)
        torch.testing.assert_close(hard[n], torch.stack(wanted))
        turned = matrix(list(keys[n]), list(anchors[n]), 0.3)
        also = kl_rows(turned, rows, 3.0)
        torch.testing.assert_close(soft[n], torch.stack(also))
        for b in range(5):
            same_gradients(hard[n, b], wanted[b], [anchors, keys])
            same_gradients(soft[n, b], also[b], [anchors, keys])


def test_for_labels_positives_are_the_others_of_the_class():
    found = positives(one_hot(0, 1, 0, 0, 2))
    wanted = [[0, 0, 0.5, 0.5, 0], [0] * 5, [0.5, 0, 0, 0.5, 0], [0.5, 0, 0.5, 0, 0], [0] * 5]
    assert found.tolist() == wanted


def test_for_mixed_samples_a_pair_counts_as_its_targets_agree():
    targets = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]], dtype=torch.float64)
    assert positives(targets).tolist() == [[0, 1, 0], [0.75, 0, 0.25], [0, 1, 0]]


def test_known_values():
    same = positives(one_hot(0, 0, 1, 1))
    collapsed = torch.ones(4, 2, dtype=torch.float64) / math.sqrt(2)
    torch.testing.assert_close(
        contrast(similarities(collapsed, collapsed, 0.1), same), torch.full((4,), math.log(3), dtype=torch.float64)
    )
    parted = one_hot(0, 0, 1, 1)
    torch.testing.assert_close(
        contrast(similarities(parted, parted, 0.5), same),
        torch.full((4,), math.log(1 + 2 * math.exp(-2)), dtype=torch.float64),
    )


def test_embeddings_are_projected_and_have_length_one():
    torch.manual_seed(0)
    projectors = [projector(3, 4).double(), projector(6, 4).double()]
    features = [draw(5, 3), draw(5, 6)]
    found = embed(projectors, features)
    assert found.shape == (2, 5, 4)
    for n in range(2):
        torch.testing.assert_close(found[n], torch.stack([project(projectors[n], row) for row in features[n]]))


def test_the_sum_over_others():
    pairs = torch.arange(9.0).view(3, 3)
    assert over_others(pairs).tolist() == [3, 8, 13]
    assert over_others(torch.ones(1, 1)).tolist() == [0]


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_without_positives_there_is_nothing_to_learn(labels):
    features = draw(len(labels), 4).requires_grad_()
    found = contrast(similarities(features, features, 0.01), positives(one_hot(*labels)))
    assert found.tolist() == [0.0] * len(labels)
    assert not torch.autograd.grad(found.sum(), features)[0].any()


def test_similarities_are_never_in_half_precision():
    features = draw(4, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = similarities(features.bfloat16(), features, 0.1)
        agreement = positives(torch.full((3, 3), 1 / 3))
    assert inside.dtype == agreement.dtype == torch.float32
    torch.testing.assert_close(inside, features.bfloat16().float() @ features.T / 0.1)
