import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from metamixer.cohort.cohort import Cohort
from metamixer.losses import Independent
from metamixer.models.resnet import resnet8
from metamixer.training.optimizer import Optim, load_state, saved_state
from metamixer.training.peer_settings import PeerSettings


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


def one_rate(optimizer):
    return {id(weight): group["scale"] for group in optimizer.param_groups for weight in group["params"]}


@pytest.mark.parametrize(
    "name", ["resnet10t", "test_vit", "test_convnext", "test_efficientnet", "mobilenetv3_small_050"]
)
def test_layer_decay_is_that_of_timm(name):
    import timm
    from timm.optim import create_optimizer_v2

    network = timm.create_model(name, num_classes=5)
    wanted = create_optimizer_v2(network, opt="sgd", lr=0.2, layer_decay=0.7)
    scales = {id(weight): group["lr_scale"] for group in wanted.param_groups for weight in group["params"]}
    found = one_rate(Optim(lr=0.2, layer_decay=0.7).build(Cohort([network]), Independent()))
    assert found == scales
    assert len(set(found.values())) > 3


def test_layer_decay_of_other_networks_is_by_stages():
    network = resnet8(num_classes=3)
    optimizer = Optim(layer_decay=0.5).build(Cohort([network]), Independent())
    found, names = one_rate(optimizer), {id(weight): name for name, weight in network.named_parameters()}
    wanted = {"stem": 0.125, "stage1": 0.125, "stage2": 0.25, "stage3": 0.5, "classifier": 1.0}
    assert found == {number: wanted[name.partition(".")[0]] for number, name in names.items()}
    assert set(one_rate(Optim().build(Cohort([network]), Independent())).values()) == {1.0}


def test_rates_and_decays_of_each_peer_by_a_slow_loop():
    """Three steps of SGD with momentum in float64, the rate of each peer and layer written out."""
    peers = Cohort([resnet8(num_classes=3), resnet8(num_classes=3)]).double()
    own = [PeerSettings(lr=0.03, weight_decay=0.0), PeerSettings()]
    optim = Optim(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.01, layer_decay=0.5)
    optimizer = optim.build(peers, Independent(), own)
    wanted, velocity, scale = {}, {}, {}
    for index, peer in enumerate(peers.peers):
        for name, weight in peer.named_parameters():
            wanted[index, name], velocity[index, name] = weight.detach().clone(), torch.zeros_like(weight)
            stage = name.partition(".")[0]
            layer = {"stage2": 1, "stage3": 2}.get(stage, 3 if stage == "classifier" else 0)
            scale[index, name] = 0.5 ** (3 - layer)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * group["scale"]
        for index, peer in enumerate(peers.peers):
            for name, weight in peer.named_parameters():
                key = (index, name)
                weight.grad = torch.full_like(weight, 1.0 + step + index)
                velocity[key] = 0.9 * velocity[key] + weight.grad + (0, 0.01)[index] * wanted[key]
                wanted[key] = wanted[key] - (0.03, 0.1)[index] * scale[key] * velocity[key]
        optimizer.step()
    for index, peer in enumerate(peers.peers):
        for name, weight in peer.named_parameters():
            torch.testing.assert_close(weight.detach(), wanted[index, name], rtol=0, atol=1e-12)
    saved = saved_state(optimizer)
    assert set(saved) == {"peer 0", "peer 1"}
    other = optim.build(peers, Independent(), own)
    load_state(other, saved)
    momenta = [[made.state[weight]["momentum_buffer"] for weight in peers.parameters()] for made in (optimizer, other)]
    torch.testing.assert_close(*momenta, rtol=0, atol=0)


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
        {"layer_decay": 0.0},
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
