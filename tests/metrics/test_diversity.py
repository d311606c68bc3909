"""Diversity against loops over peers and images."""

import math
from itertools import combinations

import pytest
import torch
from scipy.special import rel_entr

from metamixer.metrics.diversity import agreement, disagreement, ensemble, pairwise_agreement, pairwise_kl


def draw(peers=3, count=50, classes=4):
    g = torch.Generator().manual_seed(0)
    return torch.randn(peers, count, classes, generator=g, dtype=torch.float64).log_softmax(-1)


def test_against_loops():
    logs = draw()
    votes = [[max(range(4), key=lambda c: float(row[c])) for row in peer] for peer in logs]
    pairs = [sum(a == b for a, b in zip(votes[i], votes[j], strict=True)) / 50 for i, j in combinations(range(3), 2)]
    assert agreement(logs) == sum(len({v[n] for v in votes}) == 1 for n in range(50)) / 50
    found = pairwise_agreement(logs)
    assert [float(found[i, j]) for i, j in combinations(range(3), 2)] == pytest.approx(pairs)
    assert found.diag().tolist() == [1, 1, 1]
    assert disagreement(logs) == pytest.approx(1 - sum(pairs) / 3)
    for i in range(3):
        for j in range(3):
            theirs = rel_entr(logs[i].exp().numpy(), logs[j].exp().numpy()).sum(1).mean()
            assert float(pairwise_kl(logs)[i, j]) == pytest.approx(theirs, abs=1e-12)
    assert torch.allclose(ensemble(logs).exp(), logs.exp().mean(0))


def test_the_row_is_the_first_of_the_divergence():
    logs = torch.tensor([[[0.5, 0.5]], [[0.75, 0.25]]]).log()
    found = pairwise_kl(logs)
    assert float(found[0, 1]) == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert float(found[1, 0]) == pytest.approx(0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))


def test_one_peer_and_certain_ones():
    assert disagreement(draw(1)) is None
    assert agreement(draw(1)) == 1
    sure = torch.tensor([[[0.0, -math.inf]], [[0.0, -math.inf]]])
    assert pairwise_kl(sure).tolist() == [[0, 0], [0, 0]]
