"""Optimizers that do not import torch's compiler are those of torch in all else."""

import copy
import functools

import pytest
import torch
from torch import nn

from metamixer.training.uncompiled import without_compiler

KINDS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
}


def made(kind, **settings):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    return network, kind(network.parameters(), **settings)


def learn(network, optimizer, steps, seed=0):
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(8, 5, generator=draws)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_weights_and_states_are_those_of_torch(name, fused):
    kind, settings = KINDS[name]
    known, wanted = made(kind, fused=fused, **settings)
    found, ours = made(without_compiler(kind), fused=fused, **settings)
    for network, optimizer in ((known, wanted), (found, ours)):
        learn(network, optimizer, 5)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        learn(network, optimizer, 5, seed=1)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), known.parameters(), strict=True))
    states = [optimizer.state_dict() for optimizer in (ours, wanted)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, state in states[1]["state"].items():
        assert states[0]["state"][number].keys() == state.keys()
        assert all(torch.equal(value, states[0]["state"][number][key]) for key, value in state.items())
    assert isinstance(ours, kind)
    assert repr(ours) == repr(wanted)


@pytest.mark.parametrize("before", [False, True], ids=["first", "after one of torch"])
def test_hooks_are_called_once_and_closures_have_gradients(before):
    class Own(torch.optim.SGD):
        """A class whose ``step`` torch has not wrapped yet."""

    if before:
        made(Own, lr=0.1)
    network, optimizer = made(without_compiler(Own), lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure():
        seen.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = network(torch.ones(1, 5)).square().sum()
        loss.backward()
        return loss

    weights = [weight.clone() for weight in network.parameters()]
    loss = optimizer.step(closure)
    assert loss.requires_grad
    assert seen == ["before", True, "after"]
    assert torch.is_grad_enabled()
    moved = zip(network.parameters(), weights, strict=True)
    assert all(torch.allclose(weight, old - 0.1 * weight.grad) for weight, old in moved)


def test_other_wrappers_stay():
    called = []

    class Own(torch.optim.SGD):
        @staticmethod
        def counted(function):
            @functools.wraps(function)
            def inner(*args, **kwargs):
                called.append(function.__name__)
                return function(*args, **kwargs)

            return inner

    Own.zero_grad = Own.counted(torch.optim.SGD.zero_grad)
    _, optimizer = made(without_compiler(Own), lr=0.1)
    optimizer.zero_grad()
    assert called == ["zero_grad"]
