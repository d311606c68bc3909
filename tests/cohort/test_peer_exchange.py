"""Outputs of peers in several processes."""

import pytest
import torch
import torch.distributed as dist

from metamixer.cohort.peer_exchange import Elsewhere, PeerExchange
from tests.oracle import draw
from tests.processes import together

OWNED = [[0, 3], [2], [1]]
WIDTHS = [2, 6, 3, 1]  # of each peer's features
BATCH, CLASSES = 4, 5


def outputs_of(peer, step):
    """Logits and features of a peer, which every process can draw, and one stage."""
    seed = 10 * step + peer
    drawn = draw(BATCH, CLASSES, seed=seed), draw(BATCH, WIDTHS[peer], seed=100 + seed), draw(BATCH, 2, 3, 3)
    return tuple(each.requires_grad_() for each in drawn)


def swap(features):
    """What one process has after two passes, and the gradient that reaches its own."""
    dist.init_process_group("gloo")
    try:
        exchange, steps = PeerExchange(OWNED, dist.get_rank(), features=features), []
        for step in range(2):
            here = [outputs_of(peer, step) if peer in exchange.own else None for peer in range(4)]
            found = exchange(here)
            torch.stack([each[0] for each in found]).prod(0).sum().backward()
            same = all(found[peer] is here[peer] for peer in exchange.own)
            grads = {peer: here[peer][0].grad for peer in exchange.own}
            steps.append((same, [[part.detach() for part in each] for each in found], grads))
        return exchange.own, exchange.received, steps
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("features", [True, False])
def test_everyone_has_the_outputs_of_all(features, tmp_path):
    for own, received, steps in together(tmp_path, 3, swap, features):
        for step, (same, found, grads) in enumerate(steps):
            assert same, "its own outputs are the same objects, with their graph"
            wanted = [outputs_of(peer, step) for peer in range(4)]
            torch.stack([each[0] for each in wanted]).prod(0).sum().backward()
            for peer in range(4):
                assert torch.equal(found[peer][0], wanted[peer][0])
                if features or peer in own:
                    assert torch.equal(found[peer][1], wanted[peer][1])
                else:
                    assert found[peer][1].shape == (BATCH, 0)
                assert len(found[peer]) == (3 if peer in own else 2)
            for peer, grad in grads.items():
                torch.testing.assert_close(grad, wanted[peer][0].grad)
        longest = max(sum(CLASSES + features * WIDTHS[peer] for peer in peers) for peers in OWNED)
        assert received == 2 * 2 * BATCH * longest * 8  # two passes, two others, eight bytes a number


def test_a_peer_that_is_not_here():
    absent = Elsewhere()
    assert not absent.state_dict()
    with pytest.raises(RuntimeError, match="another process"):
        absent(torch.zeros(1, 3, 4, 4))
