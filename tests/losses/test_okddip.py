"""OKDDip against a loop over peers, images and classes in float64, attention included."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.types import Outputs, total
from metamixer.losses import OKDDip
from tests.oracle import draw, log_softmax


def outputs_of(peers=4, batch=3, classes=5, widths=None, frozen=(), seed=0):
    widths = widths or [16] * peers
    return Outputs(
        (2 * draw(peers, batch, classes, seed=seed)).requires_grad_(),
        features=tuple(draw(batch, width, seed=seed + 1 + p).requires_grad_() for p, width in enumerate(widths)),
        frozen=frozen,
    )


def ready(outputs, **settings):
    torch.manual_seed(3)
    loss = OKDDip(**settings)
    loss.setup(outputs)
    with torch.no_grad():
        for weight in loss.parameters():
            weight.mul_(2)  # an attention that prefers
    return loss


def slow_okddip(loss, outputs, targets, temperature=3.0, weight=1.0, detach=False):
    """``(L,)`` cross-entropies and ``(L,)`` divergences of the peers that learn, the leader last."""
    learners = list(outputs.learners)
    auxiliary, leader = learners[:-1], learners[-1]
    batch, classes = targets.shape
    fixed = outputs.logits.detach() if detach else outputs.logits

    def project(layers, peer, b):
        matrix = layers[str(outputs.features[peer].shape[1])].weight
        return [sum(matrix[row, c] * x for c, x in enumerate(outputs.features[peer][b])) for row in range(len(matrix))]

    task = dict.fromkeys(learners, 0.0)
    distill = dict.fromkeys(learners, 0.0)
    for b in range(batch):
        for peer in learners:
            for c in range(classes):
                task[peer] = task[peer] - targets[b, c] * log_softmax(outputs.logits[peer, b])[c] / batch
        aims = {leader: sum(fixed[a, b] for a in auxiliary) / len(auxiliary)}
        for a in auxiliary:
            query = project(loss.query, a, b)
            powers = []
            for other in auxiliary:
                key = project(loss.key, other, b)
                powers.append(sum(q * k for q, k in zip(query, key, strict=True)).exp())
            aims[a] = sum(p / sum(powers) * fixed[other, b] for p, other in zip(powers, auxiliary, strict=True))
        for peer in learners:
            log_t = log_softmax(aims[peer] / temperature)
            log_p = log_softmax(outputs.logits[peer, b] / temperature)
            for c in range(classes):
                kl = log_t[c].exp() * (log_t[c] - log_p[c])
                distill[peer] = distill[peer] + weight * temperature**2 * kl / batch
    return torch.stack([task[peer] for peer in learners]), torch.stack([distill[peer] for peer in learners])


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize(("temperature", "weight"), [(3.0, 1.0), (1.0, 0.4)])
@pytest.mark.parametrize("widths", [[16] * 2, [16] * 3, [16] * 4, [16, 24, 16, 9]], ids=str)
def test_okddip_is_the_slow_loop(widths, temperature, weight, detach):
    outputs, targets = outputs_of(len(widths), widths=widths), draw(3, 5, seed=9).softmax(-1)
    loss = ready(outputs, temperature=temperature, weight=weight, detach=detach)
    terms = loss(outputs, targets)
    task, distill = slow_okddip(loss, outputs, targets, temperature, weight, detach)
    assert list(terms) == ["task", "distill"]
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["distill"], distill)
    leaves = [outputs.logits, *outputs.features, *loss.parameters()]
    for peer in range(len(widths)):
        for found, wanted in ((terms["task"], task), (terms["distill"], distill)):
            grads = [torch.autograd.grad(v[peer], leaves, retain_graph=True, allow_unused=True)
                     for v in (found, wanted)]  # fmt: skip
            for a, b in zip(*grads, strict=True):
                some = next((each for each in (a, b) if each is not None), torch.zeros(()))
                a, b = (torch.zeros_like(some) if each is None else each for each in (a, b))
                torch.testing.assert_close(a, b)


def test_defaults():
    outputs, targets = outputs_of(), draw(3, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    torch.testing.assert_close(loss(outputs, targets)["distill"], slow_okddip(loss, outputs, targets)[1])
    assert {tuple(weight.shape) for weight in loss.parameters()} == {(2, 16)}


def crossing(loss, outputs, targets):
    """``[i][j]``: whether a gradient flows from the distillation of peer i into the logits of peer j."""
    distill = loss(outputs, targets)["distill"]
    grads = [torch.autograd.grad(value, outputs.logits, retain_graph=True)[0] for value in distill]
    return [[bool(own.any()) for own in grad] for grad in grads]


def test_where_gradients_flow():
    """As in the official code into all auxiliary peers, never into the leader; detached each into its own."""
    outputs, targets = outputs_of(), draw(3, 5, seed=9).softmax(-1)
    assert crossing(ready(outputs), outputs, targets) == [[True, True, True, False]] * 3 + [[True] * 4]
    loss = ready(outputs, detach=True)
    assert crossing(loss, outputs, targets) == [[i == j for j in range(4)] for i in range(4)]
    total(loss(outputs, targets)).backward()
    assert all(weight.grad.any() for weight in loss.parameters())
    assert [features.grad is not None for features in outputs.features] == [True, True, True, False]


def test_an_attention_that_sees_nothing_takes_the_mean():
    """Then the targets of all are the leader's."""
    outputs, targets = outputs_of(), draw(3, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    with torch.no_grad():
        loss.query["16"].weight.zero_()
    mean = outputs.logits[:3].mean(0)
    log_t, log_p = (mean / 3).log_softmax(-1), (outputs.logits / 3).log_softmax(-1)
    wanted = 9 * (log_t.exp() * (log_t - log_p)).sum(-1).mean(-1)
    torch.testing.assert_close(loss(outputs, targets)["distill"], wanted)


def test_an_attention_to_oneself_alone_has_nothing_to_teach():
    outputs, targets = outputs_of(3), draw(3, 5, seed=9).softmax(-1)
    own = [torch.zeros(3, 16, dtype=torch.float64) for _ in range(3)]
    own[0][:, 0] = own[1][:, 1] = 30.0
    loss = ready(outputs)
    with torch.no_grad():
        for layers in (loss.query, loss.key):
            layers["16"].weight.zero_()[:, :2] = torch.eye(2)
    distill = loss(Outputs(outputs.logits, features=tuple(own)), targets)["distill"]
    torch.testing.assert_close(distill[:2], torch.zeros(2, dtype=torch.float64))
    assert distill[2] > 0.01


def test_one_auxiliary_peer_is_its_own_target():
    outputs, targets = outputs_of(2), draw(3, 5, seed=9).softmax(-1)
    distill = ready(outputs)(outputs, targets)["distill"]
    torch.testing.assert_close(distill[0], torch.tensor(0.0, dtype=torch.float64))
    assert distill[1] > 0.01


@pytest.mark.parametrize("progress", [None, 0.0, 0.1, 80 / 300, 0.9])
def test_ramp(progress):
    outputs, targets = outputs_of(), draw(3, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    share = 1.0 if progress is None else math.exp(-5 * (1 - min(progress * 300 / 80, 1)) ** 2)
    found, full = loss(outputs, targets, progress=progress), loss(outputs, targets)
    torch.testing.assert_close(found["distill"], share * full["distill"])
    torch.testing.assert_close(found["task"], full["task"])


@pytest.mark.parametrize("frozen", [(1,), (4,)])
def test_frozen_peers_are_left_aside_and_the_leader_is_the_last_that_learns(frozen):
    outputs, targets = outputs_of(5, frozen=frozen), draw(3, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    terms = loss(outputs, targets)
    for name, wanted in zip(("task", "distill"), slow_okddip(loss, outputs, targets), strict=True):
        torch.testing.assert_close(terms[name][torch.tensor(outputs.learners)], wanted)
        assert terms[name][frozen[0]] == 0
    assert list(loss.deployable(5)) == [outputs.learners[-1]]


def test_layers_are_built_once_for_each_width():
    loss = OKDDip()
    assert not list(loss.parameters())
    assert list(loss.deployable(4)) == [3]
    loss.setup(outputs_of(widths=[16, 24, 16, 99]))  # the leader's are not attended to
    first = dict(loss.named_parameters())
    assert {name: tuple(weight.shape) for name, weight in first.items()} == {
        f"{layers}.{width}.weight": (2, width) for layers in ("query", "key") for width in (16, 24)
    }
    loss.setup(outputs_of(widths=[16, 24, 16, 99], batch=2))
    assert all(first[name] is weight for name, weight in loss.named_parameters())
    assert list(loss.state_dict()) == list(first)
    narrow = OKDDip()
    narrow.setup(outputs_of(widths=[3, 24, 3, 3]))
    assert {len(weight) for weight in narrow.parameters()} == {1}
    half = OKDDip(reduction=2)
    half.setup(outputs_of())
    assert {len(weight) for weight in half.parameters()} == {8}


def test_copies():
    outputs, targets = outputs_of(), draw(3, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        found, wanted = twin(outputs, targets), loss(outputs, targets)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert list(twin.deployable(4)) == [3]


def test_half_precision():
    outputs, targets = outputs_of(), draw(3, 5, seed=9).softmax(-1).float()
    half = Outputs(outputs.logits.float(), features=tuple(x.bfloat16() for x in outputs.features))
    loss = ready(half)
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss(half, targets)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    wanted = slow_okddip(loss.double(), outputs, targets.double())[1]
    torch.testing.assert_close(terms["distill"].double(), wanted, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("trunk", [False, True])
def test_networks_and_branches(trunk):
    torch.manual_seed(0)
    networks = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
        for _ in range(4)
    ]
    if trunk:
        share_trunk(networks, "1")
    cohort = Cohort(networks, stages=["1", "3"])
    outputs, targets = cohort(torch.rand(8, 3, 6, 6)), torch.eye(5)[torch.arange(8) % 5]
    loss = ready(outputs)
    total(loss(outputs, targets)).backward()
    assert all(weight.grad.any() for weight in (*cohort.parameters(), *loss.parameters()))


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"weight": -0.1}, {"ramp_up": 1.5}, {"reduction": 0}], ids=str
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        OKDDip(**setting)


def test_what_does_not_fit():
    outputs, targets = outputs_of(), draw(3, 5, seed=9).softmax(-1)
    with pytest.raises(ValueError, match="OKDDip compares features"):
        OKDDip().setup(Outputs(outputs.logits))
    with pytest.raises(ValueError, match="a leader and auxiliary peers, 1 learns here"):
        OKDDip().setup(outputs_of(3, frozen=(0, 2)))
    with pytest.raises(ValueError, match=r"features of 16 numbers: setup"):
        OKDDip()(outputs, targets)
    with pytest.raises(ValueError, match="soft ones of"):
        ready(outputs)(outputs, torch.tensor([0, 1, 2]))
