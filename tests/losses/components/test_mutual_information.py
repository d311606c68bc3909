"""Bounds on mutual information: slow loops, and cases whose information is known."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamixer.losses.components.contrastive import embed
from metamixer.losses.components.mutual_information import (
    Gaussian,
    Information,
    gaussian_information,
    info_nce,
    jensen_shannon,
    js_information,
    nce_information,
    negatives,
)
from tests.oracle import draw

LABELS = [0, 1, 0, 2, 1, 0]
ONE_HOT = torch.eye(3, dtype=torch.float64)[LABELS]


def slow_nce(scores, partners):
    """-log of the share of the right partner among the given ones, from rows and from columns."""
    found = []
    for b in range(len(scores)):
        row = math.exp(scores[b, b]) / sum(math.exp(scores[b, c]) for c in {b, *partners(b)})
        column = math.exp(scores[b, b]) / sum(math.exp(scores[c, b]) for c in {b, *partners(b)})
        found.append(-(math.log(row) + math.log(column)) / 2)
    return torch.tensor(found, dtype=torch.float64)


def slow_js(scores, partners):
    found = []
    for b in range(len(scores)):
        apart = [math.log1p(math.exp(scores[a, b])) for a in partners(b)]
        found.append(math.log1p(math.exp(-scores[b, b])) + (sum(apart) / len(apart) if apart else 0))
    return torch.tensor(found, dtype=torch.float64)


def everyone(b):
    return [c for c in range(len(LABELS)) if c != b]


def of_other_classes(b):
    return [c for c in range(len(LABELS)) if LABELS[c] != LABELS[b]]


@pytest.mark.parametrize(("fast", "slow"), [(info_nce, slow_nce), (jensen_shannon, slow_js)])
def test_estimators_are_the_slow_loops(fast, slow):
    scores = 2 * draw(6, 6)
    torch.testing.assert_close(fast(scores, negatives(scores)), slow(scores, everyone))
    masked = negatives(scores, ONE_HOT)  # for labels: the pairs of one class are really gone
    torch.testing.assert_close(fast(scores, masked), slow(scores, of_other_classes))


def test_negatives_of_soft_targets_count_by_the_probability_to_differ():
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    wanted = [[0, 0.5, 0.5, 1], [0.5, 0, 0.5, 1], [0.5, 0.5, 0, 1], [1, 1, 1, 0]]
    assert negatives(draw(4, 4), targets).tolist() == wanted


@pytest.mark.parametrize("estimate", [info_nce, jensen_shannon])
def test_a_batch_of_one_class_leaves_nobody_to_compare_with(estimate):
    scores = draw(4, 4).requires_grad_()
    losses = estimate(scores, negatives(scores, torch.eye(3, dtype=torch.float64)[[1, 1, 1, 1]]))
    alone = torch.zeros(4) if estimate is info_nce else F.softplus(-scores.detach().diagonal())
    torch.testing.assert_close(losses, alone.double())
    losses.sum().backward()
    assert scores.grad.isfinite().all()
    assert not (scores.grad - scores.grad.diagonal().diag()).any()


def gaussians(rho, size, dimensions, seed):
    """Pairs with correlation rho in each dimension: -dimensions / 2 log(1 - rho^2) nats."""
    u = draw(size, dimensions, seed=seed)
    return u, rho * u + math.sqrt(1 - rho**2) * draw(size, dimensions, seed=seed + 10_000)


def log_ratio(u, v, rho):
    """log p(v | u) / p(v) of every u with every v: the critic that nobody beats."""
    given = -((v[None] - rho * u[:, None]) ** 2) / (2 * (1 - rho**2)) - math.log(1 - rho**2) / 2
    return (given + v[None] ** 2 / 2).sum(-1)


@pytest.mark.parametrize(("rho", "dimensions"), [(0.0, 3), (0.5, 1), (0.6, 4), (0.8, 2)])
def test_nce_finds_the_information_of_gaussians_and_does_not_pass_it(rho, dimensions):
    truth = -dimensions / 2 * math.log(1 - rho**2)
    rounds = [nce_information(log_ratio(*gaussians(rho, 256, dimensions, seed), rho)) for seed in range(30)]
    found, error = torch.stack(rounds).mean().item(), torch.stack(rounds).std().item() / math.sqrt(30)
    assert found <= truth + 3 * error + 1e-9
    assert found == pytest.approx(truth, abs=0.03 + 3 * error)
    worse = [nce_information(0.2 * log_ratio(*gaussians(rho, 256, dimensions, seed), rho)) for seed in range(30)]
    assert rho == 0 or torch.stack(worse).mean().item() < found - 0.05


def test_nce_sees_no_more_than_the_logarithm_of_the_batch():
    rho, size = 0.9999, 16
    assert -4 * math.log(1 - rho**2) > 10 * math.log(size)
    found = nce_information(log_ratio(*gaussians(rho, size, 8, seed=0), rho))
    assert found <= math.log(size)
    assert found == pytest.approx(math.log(size), abs=0.01)


def test_the_jensen_shannon_bound_meets_the_divergence_with_the_best_critic():
    rho = 0.8
    grid = torch.linspace(-7, 7, 1401, dtype=torch.float64)
    apart = torch.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / 2) / (2 * math.pi)
    ratio = log_ratio(grid[:, None], grid[:, None], rho)
    joint = apart * ratio.exp()
    mean = (joint + apart) / 2
    cell = (grid[1] - grid[0]) ** 2
    assert (joint * cell).sum().item() == pytest.approx(1, abs=1e-4)
    terms = torch.special.xlogy(joint, joint / mean) + torch.special.xlogy(apart, apart / mean)
    truth = (terms.nan_to_num() / 2 * cell).sum().item()
    samples = [gaussians(rho, 500, 1, seed) for seed in range(10)]
    best = torch.stack([js_information(log_ratio(*pair, rho)) for pair in samples]).mean().item()
    assert best == pytest.approx(truth, abs=0.01)
    for other in (lambda s: 2 * s, lambda s: s + 0.7, lambda s: 0.3 * s, torch.tanh):
        assert torch.stack([js_information(other(log_ratio(*pair, rho))) for pair in samples]).mean() < best - 0.005


def linear(a, noise):
    """A Gaussian of t = (a s + n, -a s + n'), which the regressor can express: ReLU takes s and -s apart."""
    made = Gaussian(1, 2).double()
    for layer, weight in zip(made.mean[::2], ([[1], [-1]], [[1, 0], [0, 1]], [[a, -a], [-a, a]]), strict=True):
        layer.weight.data = torch.tensor(weight, dtype=torch.float64)
    made.rho.data.fill_(math.log(math.expm1(noise**2 - 1e-5)))
    return made


@pytest.mark.parametrize(("a", "noise"), [(0.0, 1.0), (1.0, 1.0), (2.0, 0.5)])
def test_vid_finds_the_information_of_gaussians(a, noise):
    s = draw(20_000, 1)
    t = torch.cat([a * s, -a * s], dim=1) + noise * draw(20_000, 2, seed=1)
    truth = math.log((a**2 + noise**2) / noise**2) / 2  # I(t_c; s) of each channel
    best = gaussian_information(linear(a, noise)(s, t), t)
    assert best.item() == pytest.approx(truth, abs=0.02)
    for wrong in (linear(a + 0.5, noise), linear(a, 2 * noise), linear(a, noise / 2)):
        assert gaussian_information(wrong(s, t), t) < best - 0.02


@pytest.mark.parametrize("size", [(), (3,), (2, 3), (2, 2, 2)], ids=str)
def test_vid_is_the_slow_loop(size):
    torch.manual_seed(0)
    made, s, t = Gaussian(3, 2).double(), draw(4, 3, *size), draw(4, 2, *size, seed=1)
    made.rho.data += draw(2, seed=2)
    first, second, third = (layer.weight for layer in made.mean[::2])
    found = made(s, t)
    for b in range(4):
        places = list(torch.cartesian_prod(*(torch.arange(n) for n in size)).view(-1, len(size))) if size else [()]
        total = 0.0
        for place in places:
            here = tuple(int(x) for x in place)
            mean = third @ (second @ (first @ s[(b, slice(None), *here)]).clamp(min=0)).clamp(min=0)
            for c in range(2):
                variance = (1 + made.rho[c].exp()).log() + 1e-5
                total = total + (t[(b, c, *here)] - mean[c]) ** 2 / (2 * variance) + variance.log() / 2
        torch.testing.assert_close(found[b], total / (2 * len(places)))


def test_vid_starts_at_a_variance_of_five():
    made = Gaussian(3, 4)
    torch.testing.assert_close(F.softplus(made.rho) + 1e-5, torch.full((4,), 5.0))


def test_a_constant_target_has_finite_numbers():
    made, t = Gaussian(3, 2), torch.ones(4, 2, 2, 2)
    assert gaussian_information(made(torch.randn(4, 3, 2, 2), t), t).isfinite()


@pytest.mark.parametrize("estimator", ["infonce", "jsd", "vid"])
def test_gradients_reach_the_learner_and_the_projectors_of_frozen_peers(estimator):
    torch.manual_seed(0)
    made = Information(estimator, [3, 4, 5], learners=[0, 2], tau=0.1).double()
    features = [draw(6, width, seed=width).requires_grad_() for width in (3, 4, 5)]
    found = list(made(features))
    assert [(i, j) for i, j, *_ in found] == [(0, 1), (0, 2), (2, 0), (2, 1)]
    weights = dict(made.named_parameters())
    for i, j, losses, number in found:
        assert losses.shape == (6,)
        assert number.shape == ()
        assert not number.requires_grad
        grads = torch.autograd.grad(losses.sum(), [*features, *weights.values()], retain_graph=True, allow_unused=True)
        reached = [grad is not None and bool(grad.any()) for grad in grads]
        assert reached[:3] == [p == i for p in range(3)]
        if estimator == "vid":
            owners = {name.split(".")[1] for name, hit in zip(weights, reached[3:], strict=True) if hit}
            assert owners == {f"{i}-{j}"}
        else:
            owners = {int(name.split(".")[1]) for name, hit in zip(weights, reached[3:], strict=True) if hit}
            assert owners == ({0, 1} if (i, j) == (0, 1) else {1, 2} if (i, j) == (2, 1) else {i})


@pytest.mark.parametrize("estimator", ["infonce", "jsd"])
def test_the_critic_is_the_cosine_over_tau(estimator):
    torch.manual_seed(0)
    made = Information(estimator, [3, 4], learners=[0, 1], tau=0.2).double()
    features = [draw(5, 3), draw(5, 4, seed=1)]
    embedded = []
    for project, each in zip(made.projectors, features, strict=True):
        assert [type(layer) for layer in project] == [nn.Linear, nn.ReLU, nn.Linear]
        assert project[0].out_features == project[2].out_features == 128
        first, last = project[0], project[2]
        rows = [last.weight @ (first.weight @ x + first.bias).clamp(min=0) + last.bias for x in each]
        embedded.append([row / row.square().sum().sqrt() for row in rows])
    scores = torch.tensor([[(u @ v).item() / 0.2 for v in embedded[1]] for u in embedded[0]], dtype=torch.float64)
    (_, _, there, number), (_, _, back, _) = made(features)
    slow, bound = (slow_nce, nce_information) if estimator == "infonce" else (slow_js, js_information)
    torch.testing.assert_close(there, slow(scores, lambda b: [c for c in range(5) if c != b]))
    torch.testing.assert_close(back, slow(scores.T, lambda b: [c for c in range(5) if c != b]))
    torch.testing.assert_close(number, bound(scores))
    _, _, masked, unmasked = next(made(features, torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2, 1]]))
    assert (masked < there).any()
    torch.testing.assert_close(unmasked, number)


def test_scores_keep_their_precision_under_autocast():
    torch.manual_seed(0)
    made = Information("infonce", [3, 4], learners=[0, 1], tau=0.01)
    features = [draw(5, 3).float(), draw(5, 4, seed=1).float()]
    with torch.autocast("cpu", torch.bfloat16):
        _, _, losses, number = next(made(features))
        u, v = embed(made.projectors, features).double()
    assert losses.dtype == number.dtype == torch.float32
    scores = torch.stack([torch.stack([(a * b).sum() / 0.01 for b in v]) for a in u])
    torch.testing.assert_close(losses.double(), info_nce(scores, negatives(scores)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimator", ["infonce", "jsd", "vid"])
def test_copies(estimator):
    made, features = Information(estimator, [3, 4], [0, 1], 0.1), [draw(5, 3).float(), draw(5, 4).float()]
    for twin in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        for one, other in zip(made(features), twin(features), strict=True):
            assert torch.equal(one[2], other[2])
