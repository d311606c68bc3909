import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from metamixer.models import build
from metamixer.models.ensemble import Ensemble, build_ensemble
from tests.oracle import draw, softmax

C = 4


def linear(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, C)).double()


def test_its_softmax_is_the_mean_of_the_probabilities():
    networks, images = [linear(seed) for seed in range(3)], draw(5, 1, 2, 3)
    found = Ensemble(networks)(images)
    for b in range(5):
        each = [softmax(network(images[b : b + 1])[0].detach()) for network in networks]
        torch.testing.assert_close(found[b].exp().detach(), sum(each) / 3)
    torch.testing.assert_close(found.softmax(-1), found.exp())


def test_one_network_keeps_its_answer():
    images = draw(5, 1, 2, 3)
    torch.testing.assert_close(Ensemble([linear(0)])(images), linear(0)(images).log_softmax(-1))


def test_networks_that_put_out_an_object_with_logits():
    class Answers(nn.Module):
        def forward(self, images):
            return SimpleNamespace(logits=images.flatten(1))

    images = draw(2, 1, 2, 2)
    torch.testing.assert_close(Ensemble([Answers()])(images), images.flatten(1).log_softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_single_precision(dtype):
    class Sure(nn.Module):
        def __init__(self, logit):
            super().__init__()
            self.logit = logit

        def forward(self, images):
            return torch.tensor([[self.logit, 0.0]], dtype=dtype).expand(len(images), 2)

    found = Ensemble([Sure(20.0), Sure(0.0)])(torch.zeros(3, 1))
    assert found.dtype == torch.float32
    first = (1 / (1 + math.exp(-20)) + 0.5) / 2
    torch.testing.assert_close(found.exp(), torch.tensor([[first, 1 - first]]).expand(3, 2))


def test_every_network_learns():
    ensemble = Ensemble([linear(0), linear(1)])
    ensemble(draw(5, 1, 2, 3))[:, 0].sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in ensemble.parameters())


def test_no_networks():
    with pytest.raises(ValueError, match="at least one network"):
        Ensemble([])


def test_members_by_name_with_options_and_inside_of_each_other():
    members = [
        {"name": "resnet8", "options": {"shortcut": "A"}},
        {"name": "ensemble", "options": {"members": [{"name": "wrn_16_1"}]}},
    ]
    ensemble = build_ensemble(build, members, num_classes=3, in_channels=1).eval()
    first, second = ensemble.networks
    assert not [key for key in first.state_dict() if "shortcut" in key]
    assert isinstance(second, Ensemble)
    images = torch.randn(2, 1, 8, 8)
    by_name = build("ensemble", num_classes=3, in_channels=1, members=members).eval()
    by_name.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(by_name(images), ensemble(images))
    wanted = (first(images).softmax(-1) + second(images).exp()) / 2
    torch.testing.assert_close(ensemble(images).exp(), wanted)
