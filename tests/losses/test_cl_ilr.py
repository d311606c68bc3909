"""CL-ILR against a loop over heads, images and classes in float64, and its trunk against heads run one by one."""

import copy
import functools
import math

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import Outputs, total
from metamixer.losses import CLILR
from tests import oracle
from tests.oracle import log_softmax

draw = functools.partial(oracle.draw, scale=2.0)


def outputs_of(logits, frozen=()):
    return Outputs(logits, ((torch.zeros(1), torch.zeros(1)),) * len(logits), frozen=frozen, shared=1)


def slow_clilr(logits, targets, temperature, share):
    """Per head b CE, (1 - b) T^2 times the cross-entropy with the others, and that one's part that is constant."""
    heads, batch, classes = logits.shape
    task, soft, entropy = [], [], []
    for h in range(heads):
        hard = teaching = constant = 0.0
        for b in range(batch):
            others = [logits[j, b].detach() for j in range(heads) if j != h]
            log_q = log_softmax(sum(others) / len(others) / temperature)
            log_p = log_softmax(logits[h, b] / temperature)
            for c in range(classes):
                hard = hard - share * targets[b, c] * log_softmax(logits[h, b])[c] / batch
                teaching = teaching - (1 - share) * temperature**2 * log_q[c].exp() * log_p[c] / batch
                constant = constant - (1 - share) * temperature**2 * log_q[c].exp() * log_q[c] / batch
        task.append(hard)
        soft.append(teaching)
        entropy.append(constant)
    return torch.stack(task), torch.stack(soft), torch.stack(entropy)


@pytest.mark.parametrize(("temperature", "share"), [(2.0, 0.5), (1.0, 0.2), (3.0, 1.0), (3.0, 0.0)])
@pytest.mark.parametrize("heads", [2, 3, 4])
def test_clilr_is_the_slow_loop(heads, temperature, share):
    logits, targets = draw(heads, 3, 4).requires_grad_(), draw(3, 4, seed=1).softmax(-1)
    terms = CLILR(share, temperature)(outputs_of(logits), targets)
    task, soft, entropy = slow_clilr(logits, targets, temperature, share)
    assert list(terms) == ["task", "distill"]
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["distill"], soft - entropy)
    for h in range(heads):  # the gradients are those of the paper's cross-entropy, and stay with their head
        for found, wanted in ((terms["task"], task), (terms["distill"], soft)):
            grads = [torch.autograd.grad(v[h], logits, retain_graph=True)[0] for v in (found, wanted)]
            torch.testing.assert_close(*grads)
            assert not grads[0][[j for j in range(heads) if j != h]].any()


def test_defaults():
    logits, targets = draw(3, 3, 4), draw(3, 4, seed=1).softmax(-1)
    task, soft, entropy = slow_clilr(logits, targets, 2.0, 0.5)
    for progress in (None, 0.0, 0.5):
        terms = CLILR()(outputs_of(logits), targets, progress)
        torch.testing.assert_close(terms["task"], task)
        torch.testing.assert_close(terms["distill"], soft - entropy)


@pytest.mark.parametrize("progress", [None, 0.0, 0.1, 0.2, 0.9])
def test_ramp(progress):
    logits, targets = draw(3, 3, 4), draw(3, 4, seed=1).softmax(-1)
    full, ramped = CLILR()(outputs_of(logits), targets), CLILR(ramp_up=0.2)(outputs_of(logits), targets, progress)
    share = 1.0 if progress is None else math.exp(-5 * (1 - min(progress / 0.2, 1)) ** 2)
    torch.testing.assert_close(ramped["distill"], share * full["distill"])
    torch.testing.assert_close(ramped["task"], full["task"])


@pytest.mark.parametrize("heads", [2, 3, 4])
def test_heads_that_agree_have_nothing_to_teach(heads):
    logits = draw(1, 3, 4).expand(heads, -1, -1).clone().requires_grad_()
    distill = CLILR()(outputs_of(logits), torch.full((3, 4), 0.25, dtype=torch.float64))["distill"]
    torch.testing.assert_close(distill, torch.zeros_like(distill), rtol=0, atol=1e-14)
    assert torch.autograd.grad(distill.sum(), logits)[0].abs().max() < 1e-14


def test_three_heads_are_taught_by_the_mean_and_not_by_each():
    """Two others that are sure of different classes: the mean of their logits is torn, and so is the target."""
    logits = torch.zeros(3, 1, 3)
    logits[1, 0, 0] = logits[2, 0, 1] = 40.0
    target = torch.tensor([[0.5, 0.5, 0.0]])
    terms = CLILR(task_weight=0.0, temperature=1.0)(outputs_of(logits), target)
    torch.testing.assert_close(terms["distill"][0], torch.tensor(math.log(3) - math.log(2)), rtol=1e-4, atol=1e-4)


def test_large_logits_of_one_head_leave_the_others_exact():
    logits, targets = draw(3, 3, 4).float(), draw(3, 4, seed=1).softmax(-1).float()
    logits[2] *= 1e5
    found = CLILR(temperature=1.0)(outputs_of(logits), targets)["distill"]
    _, soft, entropy = slow_clilr(logits.double(), targets.double(), 1.0, 0.5)
    torch.testing.assert_close(found[2].double(), (soft - entropy)[2], rtol=1e-5, atol=1e-5)


def test_a_frozen_head_teaches_and_learns_nothing():
    logits, targets = draw(3, 3, 4).requires_grad_(), draw(3, 4, seed=1).softmax(-1)
    terms = CLILR()(outputs_of(logits, frozen=(1,)), targets)
    task, soft, entropy = slow_clilr(logits, targets, 2.0, 0.5)
    for name, wanted in (("task", task), ("distill", soft - entropy)):
        assert terms[name][1] == 0
        torch.testing.assert_close(terms[name][[0, 2]], wanted[[0, 2]])
    assert not torch.autograd.grad(total(terms), logits)[0][1].any()


def heads_on_a_trunk(rescale):
    torch.manual_seed(0)
    networks = [
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(24, 5)
        ).double()
        for _ in range(3)
    ]
    apart = [copy.deepcopy(network) for network in networks]
    for own in apart[1:]:
        own[:3].load_state_dict(networks[0][:3].state_dict())
    share_trunk(networks, "2", rescale=rescale)
    return networks, apart


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_trunk_gets_the_mean_of_the_heads_gradients(rescale, stage):
    """Rescaled, and otherwise their sum; what is above the trunk gets its own in either case."""
    networks, apart = heads_on_a_trunk(rescale)
    plan = MixPlan((Blend(torch.tensor(0.3, dtype=torch.float64), torch.arange(6).flip(0), stage),))
    images, targets = draw(6, 3, 6, 6), draw(6, 5, seed=1).softmax(-1)
    loss = CLILR()
    total(loss(Cohort(networks, stages=["2", "3"])(images, plan), targets)).backward()
    alone = Cohort(apart, stages=["2", "3"])(images, plan)
    total(loss(outputs_of(alone.logits), targets)).backward()
    for name, weight in networks[0].named_parameters():
        grads = [dict(own.named_parameters())[name].grad for own in apart]
        if int(name[0]) > 2:
            torch.testing.assert_close(weight.grad, grads[0])
        else:
            torch.testing.assert_close(weight.grad, sum(grads) / 3 if rescale else sum(grads))
            assert name == "0.bias" or weight.grad.abs().max() > 1e-4  # a norm follows, so a bias has no effect


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 0.0}, {"task_weight": -0.1}, {"task_weight": 1.1}, {"ramp_up": float("nan")}],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        CLILR(**setting)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="CLILR needs branches on one trunk"):
        CLILR()(Outputs(torch.zeros(2, 3, 4)), torch.full((3, 4), 0.25))
    with pytest.raises(ValueError, match="soft ones of"):
        CLILR()(outputs_of(torch.zeros(2, 3, 4)), torch.tensor([0, 1, 2]))


def test_a_single_head_learns_from_the_labels_alone():
    terms = CLILR()(outputs_of(draw(1, 3, 4)), torch.full((3, 4), 0.25, dtype=torch.float64))
    assert terms["distill"].tolist() == [0.0]
    assert terms["task"] > 0
