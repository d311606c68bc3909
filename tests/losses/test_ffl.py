"""FFL against the paper's fusion module and loss, position by position in float64, and whom its gradients reach."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.types import Outputs, total
from metamixer.losses.ffl import FFL
from tests.oracle import draw, softmax


def cross_entropy(logits, targets):
    return sum(-(t * softmax(row).log()).sum() for row, t in zip(logits, targets, strict=True)) / len(logits)


def kl(teacher, student, temperature):
    rows = [
        (softmax(t / temperature), softmax(s / temperature)) for t, s in zip(teacher.detach(), student, strict=True)
    ]
    return temperature**2 * sum((p * (p.log() - q.log())).sum() for p, q in rows) / len(rows)


def shrunk(x, size):
    """``(C, *S)`` -> ``(C, *size)``: each position is the mean of the window that it stands for."""
    windows = [
        [range(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
        for old, new in zip(x.shape[1:], size, strict=True)
    ]
    rows = []
    for place in itertools.product(*windows):
        inside = list(itertools.product(*place))
        rows.append(sum(x[(slice(None), *at)] for at in inside) / len(inside))
    return torch.stack(rows, 1).view(len(x), *size)


def normalised(channel, weight, bias):
    """ReLU of the batch norm of one channel, a dictionary of numbers by sample and place."""
    mean = sum(channel.values()) / len(channel)
    variance = sum((value - mean) ** 2 for value in channel.values()) / len(channel)
    return {at: torch.relu((value - mean) / (variance + 1e-5).sqrt() * weight + bias) for at, value in channel.items()}


def slow_fusion(maps, fusion):
    """Concatenation, 3x3 depthwise, BN, ReLU, 1x1, BN, ReLU, mean, linear: one number after the other."""
    depthwise, norm_a, _, pointwise, norm_b, _ = fusion.body
    size = [min(sides) for sides in zip(*(each.shape[2:] for each in maps), strict=True)]
    joined = [torch.cat([shrunk(each[b], size) for each in maps]) for b in range(len(maps[0]))]
    places = list(itertools.product(*map(range, size)))
    samples = range(len(joined))

    def inside(at):
        return all(0 <= i < n for i, n in zip(at, size, strict=True))

    first = []
    for c in range(joined[0].shape[0]):
        channel = {}
        for b, at in itertools.product(samples, places):
            number = 0.0
            for step in itertools.product(range(3), repeat=len(size)):
                source = tuple(i + k - 1 for i, k in zip(at, step, strict=True))
                if inside(source):
                    number = number + depthwise.weight[(c, 0, *step)] * joined[b][(c, *source)]
            channel[b, at] = number
        first.append(normalised(channel, norm_a.weight[c], norm_a.bias[c]))
    second = []
    for o in range(pointwise.weight.shape[0]):
        weights = pointwise.weight[o].flatten()
        channel = {
            (b, at): sum(weights[c] * first[c][b, at] for c in range(len(first)))
            for b, at in itertools.product(samples, places)
        }
        second.append(normalised(channel, norm_b.weight[o], norm_b.bias[o]))
    pooled = [torch.stack([sum(channel[b, at] for at in places) / len(places) for channel in second]) for b in samples]
    return torch.stack([fusion.last.weight @ row + fusion.last.bias for row in pooled])


def slow_ffl(logits, maps, targets, fusion, temperature, weight, frozen=()):
    """The terms by name, each a list with a number for every peer."""
    peers = range(len(logits))
    learners = [peer for peer in peers if peer not in frozen]
    z_f = slow_fusion([each.detach() if peer in frozen else each for peer, each in enumerate(maps)], fusion)
    z_e = sum(logits[peer] for peer in peers) / len(peers)
    nothing = 0 * logits.sum()
    own = {
        "task": lambda i: cross_entropy(logits[i], targets),
        "distill": lambda i: weight * kl(z_f, logits[i], temperature),
        "fused": lambda i: cross_entropy(z_f, targets) / len(learners),
        "distill_fused": lambda i: weight * kl(z_e, z_f, temperature) / len(learners),
    }
    return {name: torch.stack([of(i) if i in learners else nothing for i in peers]) for name, of in own.items()}


def outputs_of(shapes, classes=4, batch=3, frozen=()):
    """Logits and a last map of each shape ``(channels, ...)``, all leaves; a first stage that must not matter."""
    logits = draw(len(shapes), batch, classes, scale=2.0).requires_grad_()
    stages = tuple(
        (torch.zeros(batch, 1, 9), draw(batch, *shape, seed=10 + peer).requires_grad_())
        for peer, shape in enumerate(shapes)
    )
    return Outputs(logits, stages, frozen=frozen)


def build(outputs, **settings):
    torch.manual_seed(0)
    loss = FFL(**settings)
    loss.setup(outputs)
    for name, weight in loss.named_parameters():  # the norms begin at 1 and 0, which would hide a mistake
        if weight.ndim == 1:
            weight.data = weight.data + draw(*weight.shape, seed=len(name), scale=0.3)
    return loss


@pytest.mark.parametrize(
    ("shapes", "frozen"),
    [
        ([(2, 3, 3), (2, 3, 3)], ()),
        ([(2, 4), (3, 4), (1, 4)], ()),
        ([(1, 2, 2, 2), (1, 2, 2, 2)], ()),
        ([(2, 4, 3), (3, 2, 2)], ()),  # another width and another size
        ([(1, 5), (2, 3), (2, 4)], (1,)),
    ],
    ids=str,
)
def test_ffl_is_the_slow_loop(shapes, frozen):
    outputs, targets = outputs_of(shapes, frozen=frozen), draw(3, 4, seed=1).softmax(-1)
    loss = build(outputs, temperature=2.0, weight=0.7)
    maps = [stages[-1] for stages in outputs.stages]
    found = loss(outputs, targets)
    wanted = slow_ffl(outputs.logits, maps, targets, loss.fusion, 2.0, 0.7, frozen)
    assert list(found) == list(wanted)
    leaves = [outputs.logits, *maps, *loss.parameters()]
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])
        for peer in outputs.learners:
            grads = [
                torch.autograd.grad(terms[name][peer], leaves, retain_graph=True, materialize_grads=True)
                for terms in (found, wanted)
            ]
            torch.testing.assert_close(*grads)


def test_defaults_are_the_official_codes():
    outputs, targets = outputs_of([(1, 2, 2)] * 2), draw(3, 4, seed=1).softmax(-1)
    loss = build(outputs)
    maps = [stages[-1] for stages in outputs.stages]
    full, wanted = loss(outputs, targets), slow_ffl(outputs.logits, maps, targets, loss.fusion, 3.0, 1.0)
    early = loss(outputs, targets, progress=40 / 300)
    ramp = math.exp(-5 * (1 - 40 / 80) ** 2)
    for name in wanted:
        torch.testing.assert_close(full[name], wanted[name])
        share = ramp if "distill" in name else 1.0
        torch.testing.assert_close(early[name], share * wanted[name], rtol=1e-3, atol=0)


def test_whom_the_gradients_reach():
    outputs, targets = outputs_of([(2, 3, 3)] * 3), draw(3, 4, seed=1).softmax(-1)
    loss = build(outputs)
    terms = loss(outputs, targets)
    maps = [stages[-1] for stages in outputs.stages]
    leaves = [outputs.logits, *maps, *loss.parameters()]

    def reached(name):
        grads = torch.autograd.grad(terms[name].sum(), leaves, retain_graph=True, materialize_grads=True)
        logits, features, module = grads[0], grads[1:4], grads[4:]
        return [bool(g.any()) for g in logits], [bool(g.any()) for g in features], any(g.any() for g in module)

    every, none = [True] * 3, [False] * 3
    assert reached("task") == (every, none, False)
    assert reached("distill") == (every, none, False)  # the fused classifier teaches, detached
    assert reached("fused") == (none, every, True)  # and learns together with all peers' features
    assert reached("distill_fused") == (none, every, True)  # from their mean, detached


def test_the_parts_are_made_once():
    outputs = outputs_of([(2, 3, 3), (3, 3, 3)])
    loss = build(outputs)
    assert sum(weight.numel() for weight in loss.parameters()) == 5 * 9 + 2 * 5 + 5 * 3 + 2 * 3 + 3 * 4 + 4
    assert loss.fusion.last.weight.dtype == torch.float64
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.setup(outputs)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    targets = draw(3, 4, seed=1).softmax(-1)
    twin = FFL()
    twin.setup(outputs)
    twin.load_state_dict(loss.state_dict())
    wanted = copy.deepcopy(loss)(outputs, targets)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), twin):
        found = other(outputs, targets)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    loss.setup(outputs_of([(2, 3), (2, 3)]))  # other peers, another module
    assert isinstance(loss.fusion.body[0], nn.Conv1d)


def test_one_image_of_one_position_is_enough_for_setup():
    outputs = Outputs(torch.zeros(2, 1, 4), tuple((torch.zeros(1, 3, 1, 1),) for _ in range(2)))
    FFL().setup(outputs)


def test_what_is_missing_is_said():
    outputs, targets = outputs_of([(2, 3, 3)] * 2), draw(3, 4, seed=1).softmax(-1)
    with pytest.raises(ValueError, match=r"loss\.setup\(outputs\)"):
        FFL()(outputs, targets)
    with pytest.raises(ValueError, match=r"1 stages; stages=\[...\]"):
        FFL().setup(Outputs(outputs.logits))
    with pytest.raises(ValueError, match=r"1 to 3 spatial axes.*peer 0 \(3, 2, 3\), peer 1 \(3, 2, 3, 3\)"):
        FFL().setup(outputs_of([(2, 3), (2, 3, 3)]))
    with pytest.raises(ValueError, match=r"1 to 3 spatial axes.*peer 0 \(3, 8\)"):
        FFL().setup(outputs_of([(8,), (8,)]))


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"weight": -1.0}, {"ramp_up": 2.0}], ids=str)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        FFL(**setting)


def network(seed, width=6, stride=2):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, width, 3, stride=stride, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


@pytest.mark.parametrize("kind", ["branches", "networks", "frozen"])
def test_cohorts_learn(kind):
    """Branches on a trunk (the paper's sub-networks), different networks, and two with a teacher."""
    if kind == "branches":
        networks = [network(seed) for seed in range(2)]
        share_trunk(networks, "0")
    else:
        networks = [network(0), network(1, width=8, stride=1), *([network(2)] if kind == "frozen" else [])]
    cohort = Cohort(networks, stages=["0", "1"], frozen=[2] if kind == "frozen" else [])
    images = torch.rand((12, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    targets = torch.eye(4)[torch.arange(12) % 4]
    images[:, 0] += targets.argmax(-1).view(-1, 1, 1)
    loss = FFL()
    loss.setup(cohort(images[:2]))
    weights = [weight for weight in [*cohort.parameters(), *loss.parameters()] if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    values = []
    for _ in range(30):
        value = total(loss(cohort(images), targets))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert all(weight.grad.any() for weight in weights if weight.ndim > 1)
    assert values[-1] < 0.8 * values[0]
