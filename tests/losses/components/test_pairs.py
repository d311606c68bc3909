"""Sums over pairs of peers against loops over Python numbers."""

import math

import pytest
import torch

from metamixer.core.types import Outputs
from metamixer.losses.components.pairs import agreement, last_maps, means, others, smallest_mean, trusted_divergence
from metamixer.losses.functional import row_divergence
from tests.oracle import draw, softmax

P, B, C = 3, 4, 5


def slow_divergence(teacher, student, temperature):
    """T^2 KL of two rows ``(C,)``."""
    p, q = softmax(teacher / temperature).tolist(), softmax(student / temperature).tolist()
    return temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def test_others():
    outputs = Outputs(draw(P, B, C), frozen=(1,))
    assert [others(i, outputs) for i in range(P)] == [[1, 2], [0, 2], [0, 1]]  # frozen peers teach


def test_means_of_rows_of_different_length():
    rows = [[torch.tensor(1.0), torch.tensor(4.0)], [torch.tensor(7.0)]]
    assert means(rows).tolist() == [2.5, 7.0]
    assert means(iter(rows)).tolist() == [2.5, 7.0]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_on_each_sample(temperature):
    teacher, student = draw(B, C, seed=1), draw(B, C, seed=2).requires_grad_()
    teacher.requires_grad_()
    found = row_divergence(teacher, student, temperature)
    wanted = [slow_divergence(teacher[b].detach(), student[b].detach(), temperature) for b in range(B)]
    assert found.tolist() == pytest.approx(wanted)
    found.sum().backward()
    assert teacher.grad is None
    probabilities = [(each.detach() / temperature).softmax(-1) for each in (student, teacher)]
    torch.testing.assert_close(student.grad, temperature * (probabilities[0] - probabilities[1]))


@pytest.mark.parametrize("frozen", [(), (0,), (0, 2)], ids=str)
def test_trusted_divergence(frozen):
    outputs, trusted = Outputs(draw(P, B, C), frozen=frozen), draw(P, B, seed=3).abs()
    wanted = []
    for i in [i for i in range(P) if i not in frozen]:
        total = 0.0
        for j in [j for j in range(P) if j != i]:
            for b in range(B):
                divergence = slow_divergence(outputs.logits[j, b], outputs.logits[i, b], 2.0)
                total += float(trusted[j, b]) * divergence / B / (P - 1)
        wanted.append(total)
    assert trusted_divergence(outputs, trusted, 2.0).tolist() == pytest.approx(wanted)


def test_agreement():
    named = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [4, 1, 0, 0]])
    logits = torch.nn.functional.one_hot(named, C).double()
    # Peers 0 and 1 agree on three of four samples, 0 and 2 on one, 1 and 2 on two.
    assert agreement(Outputs(logits)).tolist() == [(3 + 1) / 8, (3 + 2) / 8, (1 + 2) / 8]
    assert agreement(Outputs(logits, frozen=(1,))).tolist() == [4 / 8, 3 / 8]


def test_last_maps_are_averaged_to_the_smallest():
    first, large, small = draw(B, 2, 8, 8), draw(B, 3, 4, 4, seed=1), draw(B, 5, 2, 4, seed=2)
    found = last_maps(Outputs(draw(2, B, C), stages=((first, large), (first, small))))
    by_hand = (large[:, :, 0::2] + large[:, :, 1::2]) / 2  # pairs of rows
    torch.testing.assert_close(found, [by_hand, small])


def test_maps_of_different_axes_give_way_to_features():
    features = (draw(B, 3), draw(B, 6))
    outputs = Outputs(draw(2, B, C), stages=((draw(B, 2, 4, 4),), (draw(B, 6),)), features=features)
    assert all(a is b for a, b in zip(last_maps(outputs), features, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("tensor", [False, True])
def test_smallest_mean(share, tensor):
    losses = draw(P, 8).abs()
    kept = max(1, math.floor(share * 8 + 1e-9))
    wanted = [sum(sorted(row)[:kept]) / kept for row in losses.tolist()]
    found = smallest_mean(losses, torch.tensor(share) if tensor else share)
    assert found.tolist() == pytest.approx(wanted)


def test_the_smallest_of_equal_losses_are_the_first_and_the_rest_gets_no_gradient():
    losses = torch.tensor([[2.0, 1.0, 1.0, 1.0]], requires_grad=True)
    smallest_mean(losses, 0.5).backward()
    assert losses.grad.tolist() == [[0.0, 0.5, 0.5, 0.0]]
