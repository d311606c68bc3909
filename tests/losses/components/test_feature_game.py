"""The game between peers' feature maps, with judges whose scores are known."""

import pytest
import torch
from torch import nn

from metamixer.core.types import Outputs
from metamixer.losses.components.discriminator import Discriminator
from metamixer.losses.components.feature_game import play, players
from tests.oracle import draw

B, C = 4, 3


class Judge(nn.Module):
    """Scores a sample by ``scale * mean + shift``."""

    def __init__(self, scale=1.0, shift=0.5):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (scale, shift))

    def forward(self, maps):
        return self.scale * maps.flatten(1).mean(-1) + self.shift


def played(maps, outputs, **settings):
    transfers = nn.ModuleList(nn.Identity() for _ in maps)
    judges = nn.ModuleDict({str(peer): Judge(**settings) for peer in outputs.learners})
    return judges, play(transfers, judges, maps, outputs)


@pytest.mark.parametrize("frozen", [(), (1,)], ids=str)
def test_it_is_the_slow_loop(frozen):
    outputs = Outputs(draw(3, B, C), frozen=frozen)
    maps = [draw(B, 2, 3, 3, seed=peer) for peer in range(3)]
    _, (fooling, telling, accuracy) = played(maps, outputs, scale=2.0, shift=0.4)
    scores = [[2.0 * sum(sample.flatten().tolist()) / 18 + 0.4 for sample in each] for each in maps]
    for row, i in enumerate(outputs.learners):
        discriminators, rights = [], []
        for j in [j for j in range(3) if j != i]:
            real, fake = scores[j], scores[i]
            discriminators.append(sum((1 - s) ** 2 for s in real) / B + sum(s**2 for s in fake) / B)
            rights.append((sum(s > 0.5 for s in real) + sum(s <= 0.5 for s in fake)) / (2 * B))
        assert float(fooling[row].detach()) == pytest.approx(sum((1 - s) ** 2 for s in scores[i]) / B)
        assert sum(rights) / 2 <= 0.9
        assert float(telling[row].detach()) == pytest.approx(sum(discriminators) / 2)
        assert float(accuracy[row]) == pytest.approx(sum(rights) / 2)
    assert len(fooling) == 3 - len(frozen)


def test_each_player_gets_its_own_gradient():
    outputs = Outputs(draw(2, B, C))
    maps = [draw(B, 2, seed=peer).requires_grad_() for peer in range(2)]
    judges, (fooling, telling, _) = played(maps, outputs)
    for_maps = torch.autograd.grad(fooling.sum(), maps, retain_graph=True)
    for found, each in zip(for_maps, maps, strict=True):  # d/dx mean (1 - mean(x) - 1/2)^2
        wanted = (-2 * (0.5 - each.detach().mean(-1)) / B / 2)[:, None].expand(B, 2)
        torch.testing.assert_close(found, wanted)
    weights = list(judges.parameters())
    assert torch.autograd.grad(fooling.sum(), weights, retain_graph=True, allow_unused=True) == (None,) * 4
    assert torch.autograd.grad(telling.sum(), maps, retain_graph=True, allow_unused=True) == (None,) * 2
    assert all(each is not None for each in torch.autograd.grad(telling.sum(), weights))


def test_a_judge_that_is_too_good_waits():
    """Peer 0's maps are -1 and peer 1's +1: judge 0 is always right, judge 1, which takes +1 for real, never."""
    outputs = Outputs(draw(2, B, C))
    _, (fooling, telling, accuracy) = played([-torch.ones(B, 2).double(), torch.ones(B, 2).double()], outputs)
    assert accuracy.tolist() == [1.0, 0.0]
    assert telling.tolist() == [0.0, (1 + 0.5) ** 2 + 1.5**2]
    assert fooling.tolist() == [(1 + 0.5) ** 2, 0.25]


def test_players_meet_at_the_least_width():
    transfers, judges = players([(6, 2), (4, 2), (8, 2)], Outputs(draw(3, B, C), frozen=(2,)))
    maps = [torch.randn(B, width, 5, 5) for width in (6, 4, 8)]
    assert [transfer(each).shape for transfer, each in zip(transfers, maps, strict=True)] == [(B, 4, 5, 5)] * 3
    assert isinstance(transfers[1], nn.Identity)
    assert [all(p.requires_grad for p in transfer.parameters()) for transfer in transfers] == [True, True, False]
    assert list(judges) == ["0", "1"]
    assert all(isinstance(judge, Discriminator) for judge in judges.values())
    outputs = Outputs(draw(3, B, C), frozen=(2,))
    assert [found.shape for found in play(transfers, judges, maps, outputs)] == [(2,)] * 3


@pytest.mark.parametrize("axes", [0, 1, 3])
def test_players_for_vectors_signals_and_volumes(axes):
    outputs = Outputs(draw(2, B, C))
    transfers, judges = players([(3, axes), (5, axes)], outputs)
    fooling, telling, accuracy = play(
        transfers, judges, [torch.randn(B, width, *[4] * axes) for width in (3, 5)], outputs
    )
    assert all(each.isfinite().all() and each.shape == (2,) for each in (fooling, telling, accuracy))
