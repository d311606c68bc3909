"""Linear peers, whose adversarial images are known in closed form."""

import pytest
import torch

from metamixer.core.types import Outputs
from metamixer.losses.components.adversarial_examples import Pixels
from metamixer.losses.components.attacked_term import attacked_divergence
from tests.oracle import draw, log_softmax, softmax

P, B, C, SIDE = 3, 4, 5, 3
MEAN, STD = 0.4, 0.25


class Linear:
    """Peers ``W_p x``; notes how each was run."""

    def __init__(self, peers=P):
        self.weights = [draw(C, SIDE * SIDE, seed=20 + peer).requires_grad_() for peer in range(peers)]
        self.runs = []

    def __call__(self, peer, images, training=True):
        self.runs.append((peer, training))
        return images.flatten(1) @ self.weights[peer].T


def outputs_of(frozen=()):
    run = Linear()
    draws = torch.Generator().manual_seed(1)
    images = (torch.rand((B, 1, SIDE, SIDE), generator=draws, dtype=torch.float64) - MEAN) / STD
    logits = torch.stack([run(peer, images) for peer in range(P)])
    run.runs.clear()
    return Outputs(logits, images=(images,) * P, run=run, frozen=frozen), run, images


def slow(run, images, trusted, frozen, temperature, eps):
    """One step by the gradient that a softmax has: ``d KL(p_j || p_i) / dx = W_i^T (p_i - p_j)``."""
    weights = [each.detach() for each in run.weights]
    losses = []
    for i in [i for i in range(P) if i not in frozen]:
        rest, total = [j for j in range(P) if j != i], 0.0
        for b in range(B):
            x = images[b].flatten()
            rise = sum(trusted[j, b] * weights[i].T @ (softmax(weights[i] @ x) - softmax(weights[j] @ x)) for j in rest)
            changed = (x + eps / STD * rise.sign()).clamp((0 - MEAN) / STD, (1 - MEAN) / STD)
            for j in rest:
                p, q = (log_softmax(z / temperature) for z in (weights[j] @ x, weights[i] @ changed))
                total += trusted[j, b] * temperature**2 * (p.exp() * (p - q)).sum() / (B * (P - 1))
        losses.append(total)
    return torch.stack(losses)


PIXELS = Pixels.of([MEAN], [STD])


@pytest.mark.parametrize("frozen", [(), (1,)], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_the_slow_loop(frozen, temperature):
    outputs, run, images = outputs_of(frozen)
    trusted = draw(P, B, seed=7).abs()
    found = attacked_divergence(outputs, trusted, PIXELS, temperature, eps=0.1, step=0.03, steps=1)
    torch.testing.assert_close(found, slow(run, images, trusted, frozen, temperature, 0.1), rtol=1e-5, atol=1e-7)


def test_without_a_change_it_is_the_divergence():
    outputs, run, images = outputs_of()
    trusted = torch.ones(P, B, dtype=torch.float64)
    found = attacked_divergence(outputs, trusted, PIXELS, 2.0, eps=0.0, step=0.0, steps=1)
    torch.testing.assert_close(found, slow(run, images, trusted, (), 2.0, 0.0), rtol=1e-5, atol=1e-7)


def test_it_is_searched_from_outside_and_learned_from_in_the_mode_of_the_peer():
    outputs, run, _ = outputs_of()
    attacked_divergence(
        outputs, torch.ones(P, B, dtype=torch.float64), PIXELS, 1.0, eps=0.1, step=0.05, steps=2
    ).sum().backward()
    assert run.runs == [each for i in range(P) for each in [(i, False), (i, False), (i, True)]]


def test_only_the_learner_gets_a_gradient():
    outputs, run, _ = outputs_of()
    losses = attacked_divergence(
        outputs, torch.ones(P, B, dtype=torch.float64), PIXELS, 1.0, eps=0.1, step=0.05, steps=1
    )
    for i in range(P):
        found = torch.autograd.grad(losses[i], run.weights, retain_graph=True)
        assert [bool(each.any()) for each in found] == [peer == i for peer in range(P)]


def test_a_teacher_that_is_not_trusted_neither_attacks_nor_teaches():
    outputs, run, images = outputs_of()
    trusted = torch.ones(P, B, dtype=torch.float64)
    trusted[2] = 0
    found = attacked_divergence(outputs, trusted, PIXELS, 1.0, eps=0.1, step=0.05, steps=1)
    other = run.weights[2].detach().clone()
    with torch.no_grad():
        run.weights[2].copy_(other.flip(0))
    logits = torch.stack([run(peer, images) for peer in range(P)])
    again = attacked_divergence(
        Outputs(logits, images=(images,) * P, run=run), trusted, PIXELS, 1.0, eps=0.1, step=0.05, steps=1
    )
    torch.testing.assert_close(found[:2], again[:2])
