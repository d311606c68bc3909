"""KD against Hinton's formula, sample by sample in float64; and a frozen teacher in a cohort of every online method."""

import dataclasses
import functools

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.config.registry import LOSSES
from metamixer.core.types import Outputs, total
from metamixer.losses.kd import KD
from tests import oracle
from tests.losses.traits import trait
from tests.oracle import softmax

draw = functools.partial(oracle.draw, scale=3.0)


def slow_kd(logits, targets, frozen, temperature, alpha):
    """Per peer: (1 - a) CE, and a T^2 KL(mean of the teachers || peer); zeros for the teachers."""
    peers, batch, classes = logits.shape
    task, distill = [], []
    for i in range(peers):
        cross_entropy = divergence = 0 * logits.sum()
        for b in range(batch):
            for c in range(classes):
                if i in frozen:
                    continue
                teacher = sum(softmax(logits[t, b].detach() / temperature)[c] for t in frozen) / len(frozen)
                student = softmax(logits[i, b] / temperature)[c]
                cross_entropy = cross_entropy - (1 - alpha) * targets[b, c] * softmax(logits[i, b])[c].log() / batch
                divergence = divergence + alpha * temperature**2 * teacher * (teacher / student).log() / batch
        task.append(cross_entropy)
        distill.append(divergence)
    return torch.stack(task), torch.stack(distill)


@pytest.mark.parametrize(("temperature", "alpha"), [(4.0, 0.9), (1.0, 0.5), (2.0, 0.0), (3.0, 1.0)])
@pytest.mark.parametrize(("peers", "frozen"), [(2, (1,)), (2, (0,)), (3, (1,)), (4, (0, 3)), (4, (1, 2, 3))], ids=str)
def test_kd_is_the_slow_loop(peers, frozen, temperature, alpha):
    logits, targets = draw(peers, 3, 4).requires_grad_(), draw(3, 4, seed=1).softmax(-1)
    terms = KD(temperature, alpha)(Outputs(logits, frozen=frozen), targets)
    task, distill = slow_kd(logits, targets, frozen, temperature, alpha)
    assert list(terms) == ["task", "distill"]
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["distill"], distill)
    for i in range(peers):
        if i in frozen:
            continue
        found = torch.autograd.grad(terms["task"][i] + terms["distill"][i], logits, retain_graph=True)[0]
        wanted = torch.autograd.grad(task[i] + distill[i], logits, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted)
        assert not found[[j for j in range(peers) if j != i]].any()  # least of all the teachers


def test_defaults():
    logits, targets = draw(2, 3, 4), draw(3, 4, seed=1).softmax(-1)
    terms = KD()(Outputs(logits, frozen=(1,)), targets)
    task, distill = slow_kd(logits, targets, (1,), 4.0, 0.9)
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["distill"], distill)


def test_shadows_are_no_teachers():
    """A cohort of two with their shadows has frozen peers and still no teacher."""
    with pytest.raises(ValueError, match=r"peers\.1\.frozen=true peers\.1\.weights=teacher\.safetensors"):
        KD()(Outputs(draw(4, 3, 4), frozen=(2, 3), shadows=2), draw(3, 4).softmax(-1))


@pytest.mark.parametrize("peers", [1, 2])
def test_without_a_teacher(peers):
    with pytest.raises(ValueError, match=rf"all {peers} peers learn.*peers\.1\.frozen=true"):
        KD()(Outputs(draw(peers, 3, 4)), draw(3, 4).softmax(-1))


def test_a_student_that_copies_learns_from_the_labels_alone():
    logits = draw(1, 3, 4).expand(3, -1, -1).clone().requires_grad_()
    terms = KD()(Outputs(logits, frozen=(0, 2)), draw(3, 4, seed=1).softmax(-1))
    assert terms["distill"].abs().max() < 1e-12
    assert torch.autograd.grad(terms["distill"].sum(), logits)[0].abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    logits, targets = draw(3, 8, 4).to(dtype).requires_grad_(), draw(8, 4, seed=1).softmax(-1).float()
    terms = KD()(Outputs(logits, frozen=(1, 2)), targets)
    task, distill = slow_kd(logits.double(), targets.double(), (1, 2), 4.0, 0.9)
    torch.testing.assert_close(terms["task"].double(), task, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["distill"].double(), distill, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [(1,), (0, 1)])
def test_extreme_logits_stay_finite(frozen):
    logits = torch.zeros(3, 3, 5)
    logits[0, :, 0] = logits[1, :, 1] = logits[2, :, 2] = 1e4
    logits.requires_grad_()
    terms = KD()(Outputs(logits, frozen=frozen), torch.eye(5)[:3])
    total(terms).backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"alpha": -0.1}, {"alpha": 1.1}], ids=str)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        KD(**setting)


def test_targets_that_do_not_fit():
    with pytest.raises(ValueError, match="soft ones of"):
        KD()(Outputs(draw(2, 3, 4), frozen=(1,)), torch.tensor([0, 1, 2]))


# A frozen teacher in the cohort of every method

ONLINE = [name for name, cls in LOSSES.items() if not {"trunk", "shadows"} & set(cls.needs)]


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def leaf(tensor):
    return tensor.detach().clone().requires_grad_()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", ONLINE)
def test_every_online_method_takes_a_frozen_teacher(name, place):
    learners = 2
    cohort = Cohort([network(seed) for seed in range(learners + 1)], stages=["0", "1", "2"], frozen=[place])
    images = torch.rand((8, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    seen = cohort(images)
    # Leaves, even for the teacher, which the cohort runs without a graph.
    outputs = dataclasses.replace(
        seen,
        logits=leaf(20 * seen.logits),
        stages=tuple(tuple(map(leaf, stages)) for stages in seen.stages),
        features=tuple(map(leaf, seen.features)),
    )
    torch.manual_seed(0)
    loss = LOSSES[name]()
    loss.setup(outputs)
    terms = loss(outputs, torch.eye(5)[torch.arange(8) % 5])
    for term in terms.values():
        assert term.shape == (learners + 1,)
        assert term.isfinite().all()
        assert term[place] == 0
    total(terms).backward()
    assert outputs.logits.grad.any()
    if trait(LOSSES[name], "crosses_peers"):
        return  # gradients reach the peers' outputs on purpose; that a teacher has no graph is the cohort's doing
    of_teacher = [outputs.features[place].grad, *(each.grad for each in outputs.stages[place])]
    assert not outputs.logits.grad[place].any()
    assert not any(grad is not None and grad.any() for grad in of_teacher)
