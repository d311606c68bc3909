"""Our reading of the framework around Cut^nMix, term by term in float64; and the averages that follow the peers."""

import copy
import functools
import pickle

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.types import Batch, Outputs, total
from metamixer.losses.cutnmix import CutnMixLoss
from metamixer.mixers.cutnmix import CutnMix
from metamixer.training.train_step import train_step
from tests import oracle
from tests.oracle import softmax

draw = functools.partial(oracle.draw, scale=2.0)


def outputs_of(widths, batch=3, classes=4):
    """Peers with features of these widths, and their shadows; all leaves."""
    logits = draw(2 * len(widths), batch, classes).requires_grad_()
    features = tuple(draw(batch, width, seed=9 + i).requires_grad_() for i, width in enumerate(2 * list(widths)))
    peers = len(widths)
    return Outputs(logits, features=features, frozen=tuple(range(peers, 2 * peers)), shadows=peers)


def build(outputs, **settings):
    torch.manual_seed(0)
    loss = CutnMixLoss(**settings)
    loss.setup(outputs)
    return loss


def kl(teacher, student, temperature):
    """T^2 KL of one sample; the teacher as probabilities."""
    q = softmax(student / temperature)
    return temperature**2 * sum(p * (p / other).log() for p, other in zip(teacher, q, strict=True))


def slow(outputs, targets, loss, temperature, weight, feature_weight, ensemble_weight):
    """The four terms of each peer that learns."""
    peers, batch, classes = outputs.peers // 2, *outputs.logits.shape[1:]
    rows = {name: [] for name in ("task", "distill", "feature", "ensemble")}
    for i in range(peers):
        task = distill = feature = ensemble = 0 * outputs.logits.sum()
        for b in range(batch):
            z = outputs.logits[:, b]
            averages = [softmax(z[peers + k].detach() / temperature) for k in range(peers)]
            ensemble = ensemble + ensemble_weight * kl(sum(averages) / peers, z[i], temperature) / batch
            for c in range(classes):
                task = task - targets[b, c] * softmax(z[i])[c].log() / batch
            for j in range(peers):
                if j == i:
                    continue
                share = 1 / (peers - 1) / batch
                distill = distill + share * weight * kl(softmax(z[j].detach() / temperature), z[i], temperature)
                matrix = loss.projections[f"{i}-{j}"].weight
                projected, goal = matrix @ outputs.features[i][b], outputs.features[j][b].detach()
                apart = projected / (projected**2).sum().sqrt() - goal / (goal**2).sum().sqrt()
                feature = feature + share * feature_weight * (apart**2).sum()
        for name, value in zip(rows, (task, distill, feature, ensemble), strict=True):
            rows[name].append(value)
    return {name: torch.stack(values) for name, values in rows.items()}


@pytest.mark.parametrize("widths", [(5, 5), (3, 6), (4, 2, 5), (3,)], ids=str)
def test_it_is_the_slow_loop(widths):
    outputs, targets = outputs_of(widths), draw(3, 4, seed=1).softmax(-1)
    numbers = {"temperature": 2.0, "weight": 0.5, "feature_weight": 3.0, "ensemble_weight": 0.7}
    loss = build(outputs, **numbers)
    found, wanted = loss(outputs, targets), slow(outputs, targets, loss, **numbers)
    assert list(found) == list(wanted)
    peers = len(widths)
    leaves = [outputs.logits, *outputs.features, *loss.parameters()]
    for name in wanted:
        torch.testing.assert_close(found[name][:peers], wanted[name])
        assert not found[name][peers:].any()
        if peers == 1 and name in ("distill", "feature"):
            assert not found[name].any()  # there is nobody to learn from
            continue
        for i in range(peers):
            grads = [
                torch.autograd.grad(terms[name][i], leaves, retain_graph=True, materialize_grads=True)
                for terms in (found, wanted)
            ]
            torch.testing.assert_close(*grads)
            of_logits, of_features = grads[0][0], grads[0][1 : 1 + 2 * peers]
            others = [peer for peer in range(2 * peers) if peer != i]
            assert not of_logits[others].any(), "who teaches is detached, the shadows as well"
            assert not any(of_features[peer].any() for peer in others)


def test_defaults():
    outputs, targets = outputs_of((5, 5)), draw(3, 4, seed=1).softmax(-1)
    loss = build(outputs)
    wanted = slow(outputs, targets, loss, 3.0, 1.0, 1.0, 1.0)
    early = loss(outputs, targets, progress=0.0)
    for name, term in loss(outputs, targets).items():
        torch.testing.assert_close(term[:2], wanted[name])
        torch.testing.assert_close(early[name], term * (1.0 if name == "task" else 0.006737946999085467))


def test_features_of_one_direction_have_nothing_to_learn():
    outputs = outputs_of((5, 5))
    loss = build(outputs)
    for projection in loss.projections.values():
        projection.weight.data = torch.eye(5, dtype=torch.float64)
    same = outputs.features[0].detach()
    outputs = Outputs(outputs.logits, features=(same, 3 * same, same, same), frozen=(2, 3), shadows=2)
    assert loss(outputs, draw(3, 4).softmax(-1))["feature"].abs().max() < 1e-12
    outputs = Outputs(outputs.logits, features=(same, -same, same, same), frozen=(2, 3), shadows=2)
    torch.testing.assert_close(
        loss(outputs, draw(3, 4).softmax(-1))["feature"], torch.tensor([4.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    )


def test_the_parts_are_made_once():
    outputs, targets = outputs_of((3, 6)), draw(3, 4, seed=1).softmax(-1)
    loss = build(outputs)
    assert {name: tuple(each.weight.shape) for name, each in loss.projections.items()} == {"0-1": (6, 3), "1-0": (3, 6)}
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.setup(outputs)
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())
    wanted = loss(outputs, targets)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        found = other(outputs, targets)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    loss.setup(outputs_of((3, 6, 2)))
    assert len(loss.projections) == 6


def test_what_is_missing_is_said():
    outputs, targets = outputs_of((3, 3)), draw(3, 4, seed=1).softmax(-1)
    with pytest.raises(ValueError, match=r"loss\.setup\(outputs\)"):
        CutnMixLoss()(outputs, targets)
    loss = build(outputs)
    with pytest.raises(ValueError, match="compares features"):
        loss(Outputs(outputs.logits, frozen=(2, 3), shadows=2), targets)
    with pytest.raises(ValueError, match="shadows=True"):
        loss(Outputs(outputs.logits, features=outputs.features), targets)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.0},
        {"weight": -1.0},
        {"feature_weight": -1.0},
        {"ensemble_weight": -1.0},
        {"decay": 1.1},
        {"ramp_up": 2.0},
    ],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        CutnMixLoss(**setting)


def network(seed, width):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 4),
    )


def test_the_averages_follow_the_peers():
    """First the plain mean of all steps, later a moving average; a loss that is restored continues to count."""
    cohort = Cohort([network(0, 5), network(1, 7)], stages=["0"], shadows=True)
    loss = CutnMixLoss(decay=0.75)
    weights = cohort.peers[1][3].weight
    values, wanted = [], None
    for step in range(1, 8):
        weights.data = torch.full_like(weights, float(step**2))
        values.append(float(step**2))
        if step == 6:
            restored = CutnMixLoss(decay=0.75)
            restored.load_state_dict(loss.state_dict())
            loss = restored
        loss.after_step(cohort)
        wanted = sum(values) / step if step <= 4 else 0.75 * wanted + 0.25 * values[-1]
        torch.testing.assert_close(cohort.peers[3][3].weight, torch.full_like(weights, wanted))
    assert torch.equal(cohort.peers[0][3].weight, cohort.peers[2][3].weight)


def test_a_cohort_learns_from_boxes_of_its_own():
    cohort = Cohort([network(0, 5), network(1, 7)], stages=["0"], shadows=True)
    images = torch.rand((12, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 4
    images[:, 0] += labels.view(-1, 1, 1)
    loss = CutnMixLoss()
    loss.setup(cohort(images[:2]))
    weights = [weight for weight in [*cohort.parameters(), *loss.parameters()] if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9)
    mixer, values = CutnMix(probability=1.0), []
    for step in range(40):
        draws = torch.Generator().manual_seed(step % 4)
        done = train_step(cohort, mixer, loss, Batch(images, labels), draws)
        value = total(done.terms)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        loss.after_step(cohort)
        values.append(value.item())
    assert sum(values[-4:]) < 0.9 * sum(values[:4])
    assert not done.terms["task"][2:].any()
