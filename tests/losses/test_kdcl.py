"""KDCL against the formulas of the paper, sample by sample in float64, its mixture against grids and a certificate."""

import copy
import functools
import itertools
import pickle

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.types import Batch, Outputs, total
from metamixer.losses import KDCL
from metamixer.losses.kdcl import RIDGE, best_mixture, ensemble_weights
from tests import oracle
from tests.oracle import log_softmax

KINDS = ["naive", "linear", "minlogit", "general"]


draw = functools.partial(oracle.draw, scale=3.0)


def cross_entropy(z, t):
    log_p = log_softmax(z)
    return -sum(t[c] * log_p[c] for c in range(len(z)))


def soft(batch=3, classes=4, seed=1):
    return draw(batch, classes, seed=seed).softmax(-1)


def slow_mixture(z, t):
    """``(P, C), (C,) -> (P,)`` by a grid over the simplex that is made finer around the best point of it."""
    peers = len(z)
    if peers == 1:
        return torch.ones(1, dtype=z.dtype)
    centre, size = torch.full((peers,), 1 / peers, dtype=z.dtype), 1.0
    best = None
    while size > 1e-7:
        ticks = torch.linspace(-size, size, 9, dtype=z.dtype)
        for offset in itertools.product(ticks, repeat=peers - 1):
            a = centre[:-1] + torch.stack(offset)
            a = torch.cat([a, 1 - a.sum()[None]])
            if (a < -1e-12).any():
                continue
            value = cross_entropy((a[:, None] * z).sum(0), t)
            if best is None or value < best[0]:
                best = (value, a)
        centre, size = best[1], size * 0.4
    return best[1]


def slow_teacher(kind, logits, targets, temperature, weights):
    """Per sample: the probabilities that all peers learn."""
    peers, batch, classes = logits.shape
    rows = []
    for b in range(batch):
        z, t = logits[:, b].detach(), targets[b]
        if kind == "naive":
            chosen = min((z[i] for i in range(peers)), key=lambda one: float(cross_entropy(one, t)))
        elif kind == "linear":
            a = slow_mixture(z, t)
            chosen = sum(a[i] * z[i] for i in range(peers))
        elif kind == "minlogit":
            centred = [
                [z[i, c] - sum(t[d] * z[i, d] for d in range(classes)) for c in range(classes)] for i in range(peers)
            ]
            chosen = torch.stack([min(centred[i][c] for i in range(peers)) for c in range(classes)])
        else:
            p = sum(weights[i] * log_softmax(z[i] / temperature).exp() for i in range(peers))
            p = torch.stack([max(value, torch.zeros_like(value)) for value in p])
            rows.append(p / p.sum())
            continue
        rows.append(log_softmax(chosen / temperature).exp())
    return rows


def slow_kdcl(kind, logits, targets, temperature, weight, weights=None):
    peers, batch, classes = logits.shape
    weights = weights if weights is not None else [1 / peers] * peers
    teacher = slow_teacher(kind, logits, targets, temperature, weights)
    task, distill = [], []
    for i in range(peers):
        task.append(sum(cross_entropy(logits[i, b], targets[b]) for b in range(batch)) / batch)
        divergence = 0 * task[-1]
        for b in range(batch):
            student = log_softmax(logits[i, b] / temperature)
            for c in range(classes):
                p = teacher[b][c]
                if p > 0:
                    divergence = divergence + weight * temperature**2 * p * (p.log() - student[c]) / batch
        distill.append(divergence)
    return torch.stack(task), torch.stack(distill)


@pytest.mark.parametrize(("temperature", "weight"), [(2.0, 1.0), (1.0, 0.3)])
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("peers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_kdcl_is_the_slow_loop(kind, peers, hard, temperature, weight):
    logits, targets = draw(peers, 3, 4).requires_grad_(), soft()
    if hard:
        targets = torch.eye(4, dtype=torch.float64)[[2, 0, 3]]
    terms = KDCL(kind, temperature, weight)(Outputs(logits), targets)
    task, distill = slow_kdcl(kind, logits, targets, temperature, weight)
    assert list(terms) == ["task", "distill"]
    close = {"rtol": 1e-5, "atol": 1e-5} if kind == "linear" and peers > 2 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["distill"], distill, **close)
    for i in range(peers):
        found = torch.autograd.grad(terms["task"][i] + terms["distill"][i], logits, retain_graph=True)[0]
        wanted = torch.autograd.grad(task[i] + distill[i], logits, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted, **close)
        assert not found[[j for j in range(peers) if j != i]].any(), "the teacher is detached"


def test_defaults():
    loss, logits, targets = KDCL(), draw(2, 3, 4), soft()
    assert loss.kind == "general"
    torch.testing.assert_close(
        loss(Outputs(logits), targets)["distill"], slow_kdcl("general", logits, targets, 2.0, 1.0)[1]
    )


# The mixture


@pytest.mark.parametrize(
    ("peers", "scale", "most", "mean"),
    [(2, 0.1, 1e-4, 1e-6), (2, 1.0, 1e-2, 1e-4), (2, 3.0, 0.1, 1e-3)]
    + [(peers, scale, 1e-6, 1e-6) for peers in (3, 4, 6) for scale in (0.1, 1.0, 3.0)]
    + [(peers, scale, most, 1e-4) for peers in (3, 4, 6) for scale, most in ((8.0, 1e-5), (30.0, 1e-2))],
)
def test_no_mixture_is_better(peers, scale, most, mean):
    """Frank and Wolfe's gap, a . rise - min rise, is what the optimum can be better by at the most."""
    logits, targets = draw(peers, 64, 10, scale=scale), soft(64, 10, seed=3)
    targets[:32] = torch.eye(10, dtype=torch.float64)[draw(32, 10, seed=4).argmax(-1)]
    a = best_mixture(logits, targets)
    assert (a >= 0).all()
    torch.testing.assert_close(a.sum(0), torch.ones(64, dtype=torch.float64))
    mixed = (a[..., None] * logits).sum(0)
    rise = ((mixed.softmax(-1) - targets) * logits).sum(-1)
    gap = (a * rise).sum(0) - rise.amin(0)
    assert gap.max() < most
    assert gap.mean() < mean


@pytest.mark.parametrize("peers", [2, 3, 4, 6])
def test_mixtures_of_extreme_logits(peers):
    logits = draw(peers, 64, 10, scale=1e4).float()
    a = best_mixture(logits, soft(64, 10).float())
    assert (a >= 0).all()
    torch.testing.assert_close(a.sum(0), torch.ones(64))


def test_two_peers_are_mixed_as_on_a_fine_grid():
    logits, targets = draw(2, 20, 5), soft(20, 5)
    shares = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    mixed = shares[:, None, None] * logits[0] + (1 - shares)[:, None, None] * logits[1]
    values = -(targets * mixed.log_softmax(-1)).sum(-1)
    best = shares[values.argmin(0)]
    a = best_mixture(logits, targets)
    assert 0 < (best % 1 > 0).sum() < 20, "some optima lie inside and some at an end"
    torch.testing.assert_close(a[0], best, rtol=0, atol=2e-5)
    torch.testing.assert_close(a[1], 1 - best, rtol=0, atol=2e-5)


@pytest.mark.parametrize("peers", [2, 3, 4])
def test_teachers_are_in_order(peers):
    """For labels: the mixture is at least as good as the best peer, and so is the least logit."""
    logits, targets = draw(peers, 50, 6), torch.eye(6, dtype=torch.float64)[draw(50, 6, seed=2).argmax(-1)]

    def value(kind):
        return -(targets * KDCL(kind, temperature=1.0)._teacher(logits, targets).log()).sum(-1)

    own = -(targets * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(value("naive"), own.amin(0))
    assert (value("linear") <= own.amin(0) + 1e-6).all()
    assert (value("minlogit") <= own.amin(0) + 1e-9).all()


# The weights of the ensemble


@pytest.mark.parametrize("peers", [2, 3])
def test_weights_have_the_least_squared_error(peers):
    errors = draw(peers, 40, 5)
    covariance = torch.einsum("pnc,qnc->pq", errors, errors) / 40
    w = ensemble_weights(covariance)
    assert w.sum() == pytest.approx(1)
    ridged = covariance + RIDGE * covariance.diagonal().mean() * torch.eye(peers)

    def error(v):
        return v @ ridged @ v

    for seed in range(20):  # every other mixture whose weights sum to 1 is worse
        step = draw(peers, seed=seed)
        assert error(w) < error(w + 0.1 * (step - step.mean()))


def test_peers_that_agree_get_equal_weights():
    for singular in (torch.full((3, 3), 0.7), torch.zeros(3, 3)):
        torch.testing.assert_close(ensemble_weights(singular), torch.full((3,), 1 / 3, dtype=torch.float64))


def test_negative_weights_leave_a_distribution():
    loss, logits, targets = KDCL(), draw(2, 3, 4).requires_grad_(), soft()
    loss.setup(Outputs(logits))
    loss.weights = torch.tensor([-4.0, 5.0])
    terms = loss(Outputs(logits), targets)
    torch.testing.assert_close(terms["distill"], slow_kdcl("general", logits, targets, 2.0, 1.0, [-4.0, 5.0])[1])
    assert (terms["distill"] >= 0).all()


def networks():
    torch.manual_seed(0)
    return [
        nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(9 * width, 3))
        for width in (4, 7)
    ]


def held_out():
    return [Batch(draw(size, 1, 5, 5, seed=size).float(), torch.arange(size) % 3) for size in (6, 4)]


def test_weights_are_from_the_held_out_images():
    cohort, loss = Cohort(networks(), stages=["2"]), KDCL()
    loss.setup(cohort(held_out()[0].images))
    before = copy.deepcopy(cohort.state_dict())
    cohort.train()
    loss.before_epoch(cohort, iter(held_out()))
    assert cohort.training
    assert cohort.peers[0].training
    assert all(torch.equal(value, before[name]) for name, value in cohort.state_dict().items()), "no statistics moved"
    cohort.eval()
    wanted, images = torch.zeros(2, 2, dtype=torch.float64), 0
    for batch in held_out():
        p = [peer(batch.images).double().softmax(-1) for peer in cohort.peers]
        for n, label in enumerate(batch.labels.tolist()):
            errors = [[p[i][n, c].item() - float(c == label) for c in range(3)] for i in range(2)]
            for i in range(2):
                for j in range(2):
                    wanted[i, j] += sum(errors[i][c] * errors[j][c] for c in range(3))
            images += 1
    wanted = wanted / images
    ridge = RIDGE * (wanted[0, 0] + wanted[1, 1]) / 2
    first = (wanted[1, 1] + ridge - wanted[0, 1]) / (wanted[0, 0] + wanted[1, 1] + 2 * ridge - 2 * wanted[0, 1])
    torch.testing.assert_close(loss.weights, torch.stack([first, 1 - first]).float(), rtol=1e-3, atol=1e-4)
    loss.before_epoch(cohort, iter(held_out()))
    assert not cohort.training, "the mode is put back, whatever it was"
    assert not loss.weights.requires_grad


def test_without_held_out_images_the_weights_stay():
    cohort, loss = Cohort(networks(), stages=["2"]), KDCL()
    loss.before_epoch(cohort, None)
    assert loss.weights is None
    loss.setup(cohort(held_out()[0].images))
    loss.before_epoch(cohort, None)
    loss.before_epoch(cohort, [])
    assert loss.weights.tolist() == [0.5, 0.5]
    other = KDCL("naive")
    other.before_epoch(cohort, held_out())
    assert other.state_dict() == {}


def test_an_error_in_the_held_out_data_puts_the_mode_back():
    def broken():
        yield held_out()[0]
        raise OSError("gone")

    cohort, loss = Cohort(networks(), stages=["2"]).train(), KDCL()
    with pytest.raises(OSError, match="gone"):
        loss.before_epoch(cohort, broken())
    assert cohort.training


def test_weights_are_saved():
    outputs, targets = Outputs(draw(2, 3, 4)), soft()
    loss = KDCL()
    loss.setup(outputs)
    loss.weights.copy_(torch.tensor([0.9, 0.1]))
    loss.setup(outputs)
    assert loss.weights.tolist() == pytest.approx([0.9, 0.1]), "what is there stays"
    fresh = KDCL()
    fresh.setup(outputs)
    fresh.load_state_dict(loss.state_dict())
    for twin in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(outputs, targets)["distill"], loss(outputs, targets)["distill"])
    assert not torch.equal(KDCL()(outputs, targets)["distill"], loss(outputs, targets)["distill"])


# Around it


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_peers_teach_and_do_not_learn(kind):
    logits, targets = draw(3, 3, 4).requires_grad_(), soft()
    terms = KDCL(kind)(Outputs(logits, frozen=(1,)), targets)
    task, distill = slow_kdcl(kind, logits, targets, 2.0, 1.0)
    for found, wanted in ((terms["task"], task), (terms["distill"], distill)):
        torch.testing.assert_close(found[[0, 2]], wanted[[0, 2]], rtol=1e-3, atol=1e-4)
        assert found[1] == 0
    total(terms).backward()
    assert not logits.grad[1].any()


@pytest.mark.parametrize("peers", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_read_on_the_host(kind, peers):
    """On the meta device there is no data to read: a captured graph could not either."""
    logits = torch.empty(peers, 8, 5, device="meta", requires_grad=True)
    terms = KDCL(kind)(Outputs(logits), torch.empty(8, 5, device="meta"), progress=torch.empty((), device="meta"))
    total(terms).backward()
    assert logits.grad.shape == (peers, 8, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind, dtype):
    logits, targets = draw(2, 8, 4).to(dtype).requires_grad_(), soft(8)
    terms = KDCL(kind)(Outputs(logits), targets.float())
    task, distill = slow_kdcl(kind, logits.double(), targets, 2.0, 1.0)
    torch.testing.assert_close(terms["task"].double(), task, rtol=0.02, atol=0.02)
    torch.testing.assert_close(terms["distill"].double(), distill, rtol=0.02, atol=0.02)
    total(terms).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "setting", [{"kind": "best"}, {"temperature": 0.0}, {"weight": -0.1}, {"weight": float("nan")}], ids=str
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        KDCL(**setting)


def test_shapes_that_do_not_fit():
    for targets in (torch.tensor([0, 1, 2]), torch.zeros(3, 5), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match="soft ones of"):
            KDCL()(Outputs(torch.zeros(2, 3, 4)), targets)
