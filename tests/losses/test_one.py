"""ONE against a loop over branches, images and classes in float64, gate included."""

import copy
import functools
import math
import pickle

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.types import Outputs, total
from metamixer.losses import ONE
from tests import oracle
from tests.oracle import log_softmax

draw = functools.partial(oracle.draw, scale=2.0)


def outputs_of(peers=3, batch=4, classes=5, channels=6, frozen=(), seed=0):
    """Two stages, the first of them shared."""
    trunk = draw(batch, channels, 3, 2, seed=seed + 1).requires_grad_()
    above = [draw(batch, 7, seed=seed + 2 + peer).requires_grad_() for peer in range(peers)]
    logits = draw(peers, batch, classes, seed=seed).requires_grad_()
    return Outputs(logits, tuple((trunk, own) for own in above), frozen=frozen, shared=1)


def ready(outputs, **settings):
    torch.manual_seed(3)
    loss = ONE(**settings)
    loss.setup(outputs)
    with torch.no_grad():  # a norm that does something
        loss.gate.norm.weight.copy_(torch.linspace(0.5, 2, len(outputs.learners)))
        loss.gate.norm.bias.copy_(torch.linspace(-0.2, 0.6, len(outputs.learners)))
    return loss


def slow_gate(loss, trunk):
    """Rows of shares: the mean over positions, a linear layer, the batch's own statistics, ReLU, softmax."""
    gate = loss.gate
    batch, branches = len(trunk), len(gate.linear.bias)
    scores = [[gate.linear.bias[m] for m in range(branches)] for _ in range(batch)]
    for b in range(batch):
        for m in range(branches):
            for c in range(trunk.shape[1]):
                pooled = sum(trunk[b, c].flatten()) / trunk[b, c].numel()
                scores[b][m] = scores[b][m] + gate.linear.weight[m, c] * pooled
    rows = [[None] * branches for _ in range(batch)]
    for m in range(branches):
        mean = sum(scores[b][m] for b in range(batch)) / batch
        variance = sum((scores[b][m] - mean) ** 2 for b in range(batch)) / batch
        for b in range(batch):
            normed = (scores[b][m] - mean) / (variance + gate.norm.eps).sqrt()
            rows[b][m] = torch.relu(normed * gate.norm.weight[m] + gate.norm.bias[m])
    shares = []
    for row in rows:
        powers = [value.exp() for value in row]
        shares.append([power / sum(powers) for power in powers])
    return shares


def slow_one(loss, outputs, targets, temperature=3.0, weight=1.0):
    """``(M,)`` cross-entropies, the ensemble's own, ``(M,)`` divergences from the fixed ensemble."""
    logits = [outputs.logits[peer] for peer in outputs.learners]
    batch, classes = targets.shape
    shares = slow_gate(loss, outputs.stages[0][0])
    tasks, divergences = [0.0] * len(logits), [0.0] * len(logits)
    of_ensemble = 0.0
    for b in range(batch):
        ensemble = sum(shares[b][m] * logits[m][b] for m in range(len(logits)))
        fixed = log_softmax(ensemble.detach() / temperature)
        for c in range(classes):
            of_ensemble = of_ensemble - targets[b, c] * log_softmax(ensemble)[c] / batch
            for m, own in enumerate(logits):
                tasks[m] = tasks[m] - targets[b, c] * log_softmax(own[b])[c] / batch
                kl = fixed[c].exp() * (fixed[c] - log_softmax(own[b] / temperature)[c])
                divergences[m] = divergences[m] + weight * temperature**2 * kl / batch
    return torch.stack(tasks), of_ensemble, torch.stack(divergences)


@pytest.mark.parametrize(("temperature", "weight"), [(3.0, 1.0), (1.0, 0.4)])
@pytest.mark.parametrize("peers", [2, 3])
def test_one_is_the_slow_loop(peers, temperature, weight):
    outputs, targets = outputs_of(peers), draw(4, 5, seed=9).softmax(-1)
    loss = ready(outputs, temperature=temperature, weight=weight)
    terms = loss(outputs, targets)
    task, ensemble, distill = slow_one(loss, outputs, targets, temperature, weight)
    assert list(terms) == ["task", "ensemble", "distill"]
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["ensemble"], (ensemble / peers).expand(peers))
    torch.testing.assert_close(terms["distill"], distill)
    leaves = [outputs.logits, outputs.stages[0][0], *loss.parameters()]
    pairs = [(terms["ensemble"].sum(), ensemble), (total(terms), task.sum() + ensemble + distill.sum())]
    pairs += [(terms["distill"][m], distill[m]) for m in range(peers)]
    for found, wanted in pairs:
        grads = [torch.autograd.grad(v, leaves, retain_graph=True, allow_unused=True) for v in (found, wanted)]
        for a, b in zip(*grads, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b)


def test_the_gate_and_the_teacher_learn_nothing_from_distillation():
    outputs, targets = outputs_of(), draw(4, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    term = loss(outputs, targets)["distill"]
    leaves = [outputs.stages[0][0], *loss.parameters()]
    assert torch.autograd.grad(term.sum(), leaves, retain_graph=True, allow_unused=True) == (None,) * len(leaves)
    for m in range(3):
        grad = torch.autograd.grad(term[m], outputs.logits, retain_graph=True)[0]
        assert [bool(own.any()) for own in grad] == [own == m for own in range(3)]


def test_the_ensembles_cross_entropy_reaches_gate_trunk_and_all_branches():
    outputs, targets = outputs_of(), draw(4, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    leaves = [outputs.stages[0][0], outputs.logits, *loss.gate.linear.parameters()]
    grads = torch.autograd.grad(loss(outputs, targets)["ensemble"].sum(), leaves)
    assert all(grad.any() for grad in grads[:3])
    assert all(own.any() for own in grads[1])


@pytest.mark.parametrize("progress", [None, 0.0, 0.1, 80 / 300, 0.9])
def test_ramp(progress):
    outputs, targets = outputs_of(), draw(4, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    full = copy.deepcopy(loss)(outputs, targets)
    share = 1.0 if progress is None else math.exp(-5 * (1 - min(progress * 300 / 80, 1)) ** 2)
    found = copy.deepcopy(loss)(outputs, targets, progress=progress)
    torch.testing.assert_close(found["distill"], share * full["distill"])
    torch.testing.assert_close(found["ensemble"], full["ensemble"])


def test_a_gate_that_chooses_one_branch_makes_it_the_teacher():
    """Its own divergence is 0 then, and the ensemble's cross-entropy is its own."""
    outputs, targets = outputs_of(), draw(4, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    with torch.no_grad():
        loss.gate.norm.weight.zero_()
        loss.gate.norm.bias.copy_(torch.tensor([0.0, 90.0, 0.0]))
    terms = loss(outputs, targets)
    torch.testing.assert_close(terms["distill"][1], torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(terms["ensemble"].sum(), terms["task"][1])
    torch.testing.assert_close(loss.watched["gate"], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("batch", [1, 2])
def test_small_batches(batch):
    """One image has no batch statistics; two have the same ones for every difference."""
    outputs, targets = outputs_of(batch=batch), draw(batch, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    before = loss.gate.norm.running_mean.clone()
    terms = loss(outputs, targets)
    total(terms).backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert all(weight.grad.isfinite().all() for weight in loss.parameters())
    assert torch.equal(loss.gate.norm.running_mean, before) == (batch == 1)
    loss.eval()
    for twin in (loss, pickle.loads(pickle.dumps(loss))):
        assert all(term.isfinite().all() for term in twin(outputs, targets).values())


def test_one_image_in_training_is_gated_as_in_evaluation():
    outputs, targets = outputs_of(batch=1), draw(1, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    training = loss(outputs, targets)
    torch.testing.assert_close(training["ensemble"], loss.eval()(outputs, targets)["ensemble"])


def test_a_frozen_branch_is_left_aside():
    outputs, targets = outputs_of(4, frozen=(1,)), draw(4, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    terms = loss(outputs, targets)
    task, ensemble, distill = slow_one(loss, outputs, targets)
    learners = torch.tensor([0, 2, 3])
    torch.testing.assert_close(terms["task"][learners], task)
    torch.testing.assert_close(terms["distill"][learners], distill)
    torch.testing.assert_close(terms["ensemble"].sum(), ensemble)
    assert [term[1].item() for term in terms.values()] == [0.0, 0.0, 0.0]


def test_setup_builds_once_for_each_shape():
    outputs = outputs_of()
    loss = ONE()
    assert not list(loss.parameters())
    loss.setup(outputs)
    gate = loss.gate
    assert gate.linear.weight.dtype == torch.float64
    loss.setup(outputs_of(batch=2, seed=5))
    assert loss.gate is gate
    loss.setup(outputs_of(channels=9))
    assert loss.gate.linear.weight.shape == (3, 9)
    assert set(loss.state_dict()) > {"gate.linear.weight", "gate.norm.running_mean"}


def test_copies():
    outputs, targets = outputs_of(), draw(4, 5, seed=9).softmax(-1)
    loss = ready(outputs)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        found, wanted = twin(outputs, targets), copy.deepcopy(loss)(outputs, targets)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_half_precision():
    """Under autocast the trunk's features and the gate's layer are in half precision, the ensemble is not."""
    outputs, targets = outputs_of(batch=8), draw(8, 5, seed=9).softmax(-1).float()
    half = Outputs(outputs.logits.float(), tuple(tuple(x.bfloat16() for x in own) for own in outputs.stages), shared=1)
    loss = ready(half)
    assert loss.gate.linear.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        terms = loss(half, targets)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    wanted = ready(half).double()(outputs, targets.double())
    torch.testing.assert_close(terms["ensemble"].double(), wanted["ensemble"], rtol=0.05, atol=0.05)


def test_with_a_cohort_of_branches():
    torch.manual_seed(0)
    networks = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
        for _ in range(3)
    ]
    share_trunk(networks, "1")
    cohort = Cohort(networks, stages=["1", "3"])
    outputs, targets = cohort(torch.rand(8, 3, 6, 6)), torch.eye(5)[torch.arange(8) % 5]
    loss = ready(outputs)
    total(loss(outputs, targets)).backward()
    assert all(weight.grad.any() for weight in (*cohort.parameters(), loss.gate.linear.weight))


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"weight": -0.1}, {"weight": float("nan")}, {"ramp_up": 1.5}], ids=str
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        ONE(**setting)


def test_what_does_not_fit():
    outputs, targets = outputs_of(), draw(4, 5, seed=9).softmax(-1)
    apart = Outputs(outputs.logits, outputs.stages)
    for call in (ONE().setup, lambda given: ONE()(given, targets)):
        with pytest.raises(ValueError, match="ONE needs branches on one trunk"):
            call(apart)
    with pytest.raises(ValueError, match="setup"):
        ONE()(outputs, targets)
    with pytest.raises(ValueError, match="soft ones of"):
        ready(outputs)(outputs, torch.tensor([0, 1, 2, 3]))
