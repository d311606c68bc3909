import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from metamixer.cohort.cohort import Cohort
from metamixer.losses import Independent
from metamixer.training.optimizer import Optim


def cohort(n=2, **options):
    torch.manual_seed(0)
    return Cohort([nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(n)], stages=["0"], **options)


def scheduled(make, steps, lr):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"schedule": "cosine"}, lambda o: CosineAnnealingLR(o, T_max=40)),
        ({"schedule": "step", "milestones": (0.5, 0.75), "gamma": 0.2}, lambda o: MultiStepLR(o, [20, 30], gamma=0.2)),
        ({"schedule": "step", "milestones": (0.25,)}, lambda o: MultiStepLR(o, [10])),
        ({"schedule": "constant"}, lambda o: LambdaLR(o, lambda _: 1.0)),
    ],
    ids=["cosine", "step", "one step", "constant"],
)
def test_rates_are_those_of_torchs_schedulers(settings, make):
    optim = Optim(lr=0.3, warmup=0.0, **settings)
    assert [optim.rate(step / 40) for step in range(40)] == pytest.approx(scheduled(make, 40, 0.3))


def test_warm_up():
    for schedule in ("cosine", "step", "constant"):
        optim = Optim(lr=0.4, warmup=0.25, schedule=schedule)
        assert [optim.rate(at / 40) for at in range(10)] == pytest.approx([0.4 * at / 10 for at in range(10)])
        assert optim.rate(0.25) == pytest.approx(0.4)
    cosine = Optim(lr=0.4, warmup=0.25)  # over the three quarters that are left
    rest = scheduled(lambda o: CosineAnnealingLR(o, T_max=30), 30, 0.4)
    assert [cosine.rate((10 + at) / 40) for at in range(30)] == pytest.approx(rest)
    assert cosine.rate(1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_an_sgd_step_by_hand(nesterov):
    """g + wd w; v = momentum v + g; w -= lr (g + momentum v) with Nesterov, lr v without."""
    peers = cohort()
    optimizer = Optim(lr=0.1, momentum=0.8, nesterov=nesterov, weight_decay=0.02).build(peers, Independent())
    wanted = {name: p.detach().clone() for name, p in peers.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in wanted.items()}
    for step in range(3):
        for name, p in peers.named_parameters():
            p.grad = torch.full_like(p, 1.0 + step)
            gradient = p.grad + 0.02 * wanted[name]
            velocity[name] = 0.8 * velocity[name] + gradient
            wanted[name] = wanted[name] - 0.1 * (gradient + 0.8 * velocity[name] if nesterov else velocity[name])
        optimizer.step()
    for name, p in peers.named_parameters():
        torch.testing.assert_close(p.detach(), wanted[name])


def test_an_adamw_step_by_hand():
    """The first step moves every weight by lr against the sign of its gradient, after the decoupled decay."""
    peers = cohort()
    optimizer = Optim("adamw", lr=0.01, weight_decay=0.5).build(peers, Independent())
    before = [p.detach().clone() for p in peers.parameters()]
    for p in peers.parameters():
        p.grad = torch.full_like(p, -3.0)
    optimizer.step()
    for p, old in zip(peers.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - 0.01 * 0.5) + 0.01)


def test_without_momentum_nesterov_means_nothing():
    Optim(momentum=0.0, nesterov=True).build(cohort(), Independent())


def test_one_group_a_peer_and_one_for_the_loss():
    class Learns(Independent):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(2, 2)

    peers, loss = cohort(3, frozen=[1]), Learns()
    for name in ("sgd", "adamw"):
        optimizer = Optim(name).build(peers, loss)
        groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
        assert groups == [{id(p) for p in module.parameters()} for module in (peers.peers[0], peers.peers[2], loss)]
    assert len(Optim().build(cohort(2), Independent()).param_groups) == 2


def test_all_frozen():
    with pytest.raises(ValueError, match="no peer learns"):
        Optim().build(cohort(2, frozen=[0, 1]), Independent())


@pytest.mark.parametrize(
    "setting",
    [
        {"name": "adam"},
        {"schedule": "linear"},
        {"lr": 0.0},
        {"lr": math.nan},
        {"weight_decay": -1e-4},
        {"warmup": 1.0},
        {"milestones": (0.5, 1.0)},
        {"clip": 0.0},
    ],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        Optim(**setting)


def test_every_setting_that_is_off_is_named():
    with pytest.raises(ValueError, match=r"lr=-1.*clip=-2"):
        Optim(lr=-1, clip=-2)


def test_a_copy_has_the_same_settings():
    assert copy.deepcopy(Optim(lr=0.2)) == Optim(lr=0.2) != Optim(lr=0.3)
