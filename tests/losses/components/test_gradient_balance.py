"""Running means of gradient norms where the gradients are known in closed form."""

import math

import pytest
import torch

from metamixer.losses.components.gradient_balance import Balance
from tests.oracle import draw


def losses_at(features, task, other):
    """``task * |F|^2 / 2`` and ``other * sum F``: their gradients are ``task * F`` and ``other``."""
    return {
        "task": torch.stack([task * each.square().sum() / 2 for each in features]),
        "other": torch.stack([other * each.sum() for each in features]),
    }


def leaves(seed, shape=(2, 3)):
    return [draw(*shape, seed=seed + peer).requires_grad_() for peer in range(2)]


def test_means_and_ratios_over_steps():
    balance = Balance(2, ["other"], decay=0.75).double()
    task, other = [0.0, 0.0], 0.0
    for step in range(4):
        features = leaves(10 * step)
        losses = losses_at(features, 1.0 + step, 0.5)
        balance.update(losses, dict(enumerate(features)))
        norms = [(1.0 + step) * math.sqrt(sum(x * x for x in each.flatten().tolist())) for each in features]
        task = [0.75 * old + 0.25 * new for old, new in zip(task, norms, strict=True)]
        other = 0.75 * other + 0.25 * 0.5 * math.sqrt(6)
        assert balance.task.tolist() == pytest.approx(task)
        assert balance.ratio("other").tolist() == pytest.approx([each / (other + 1e-6) for each in task])
        sum(each.sum() for each in losses.values()).backward()  # the graph is kept
        assert all(each.grad is not None for each in features)


def test_the_start_at_zero_cancels():
    balance = Balance(2, ["other"]).double()
    features = leaves(0)
    balance.update(losses_at(features, 3.0, 3.0), dict(enumerate(features)))
    first = balance.ratio("other")
    balance.update(losses_at(features, 3.0, 3.0), dict(enumerate(features)))
    torch.testing.assert_close(balance.ratio("other"), first, rtol=1e-5, atol=0)


def test_peers_without_a_graph_keep_what_they_have():
    balance = Balance(2, ["other"]).double()
    features = leaves(0)
    balance.update(losses_at(features, 1.0, 1.0), dict(enumerate(features)))
    before = balance.task.clone()
    turn = [features[0].detach(), draw(2, 3, seed=9).requires_grad_()]
    balance.update(losses_at(turn, 1.0, 1.0), dict(enumerate(turn)))
    assert balance.task[0] == before[0]
    assert balance.task[1] == pytest.approx(0.9 * before[1].item() + 0.1 * turn[1].norm().item())
    balance.update(losses_at(turn, 1.0, 1.0), {})
    assert balance.task[0] == before[0]


def test_the_means_are_saved_and_need_no_gradient():
    old, new = Balance(2, ["other"]).double(), Balance(2, ["other"]).double()
    features = leaves(0)
    old.update(losses_at(features, 1.0, 2.0), dict(enumerate(features)))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new.ratio("other"), old.ratio("other"))
    assert not any(each.requires_grad for each in old.buffers())
    assert set(old.state_dict()) == {"task", "other"}


@pytest.mark.parametrize("losses", [torch.ones(2), torch.ones(2, requires_grad=True) * 1], ids=["no graph", "no way"])
def test_no_way_from_a_loss_to_the_features(losses):
    with pytest.raises(ValueError, match="gradients at the last stage cannot be compared"):
        Balance(2, ["other"]).update({"other": losses}, {0: torch.ones(3, requires_grad=True)})
