"""Attacks where the best one is known, and what they must leave alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamixer.core.eval_mode import evaluating
from metamixer.evaluation.robustness.attacks import ATTACKS, Attack, attacked
from metamixer.losses.components.adversarial_examples import Pixels

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PIXELS = Pixels.of(MEAN, STD)
EPS = 8 / 255


def to_pixels(images):
    return images * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)


def to_input(pixels):
    return (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def draw(count=12, low=0.0, high=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    return to_input(low + (high - low) * torch.rand(count, 3, 8, 8, generator=g))


def linear(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 2))


def test_the_names_are_what_they_say():
    assert [(name, a.steps, a.eps, a.step) for name, a in ATTACKS.items()] == [
        ("fgsm", 1, 8 / 255, 2 / 255), ("pgd-10", 10, 8 / 255, 2 / 255), ("pgd-20", 20, 8 / 255, 2 / 255),
    ]  # fmt: skip


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("steps", [1, 10])
def test_within_the_ball_and_within_what_pixels_can_be(steps, start):
    images, labels = draw(), torch.arange(12) % 2
    images[0] = to_input(torch.zeros(1, 3, 8, 8))[0]
    images[1] = to_input(torch.ones(1, 3, 8, 8))[0]
    g = torch.Generator().manual_seed(1)
    changed = to_pixels(attacked(linear(), images, labels, PIXELS, Attack(steps, random_start=start), g))
    assert float((changed - to_pixels(images)).abs().max()) <= EPS + 1e-6
    assert float(changed.min()) >= -1e-6
    assert float(changed.max()) <= 1 + 1e-6


def test_fgsm_on_a_linear_network_is_the_closed_form():
    network, images, labels = linear(), draw(low=0.2, high=0.8), torch.arange(12) % 2
    weight = network[1].weight.detach()
    # Of two classes the loss rises along (other row - right row), whatever the image.
    uphill = (weight[1 - labels] - weight[labels]).view(12, 3, 8, 8).sign()
    found = to_pixels(attacked(network, images, labels, PIXELS, ATTACKS["fgsm"]))
    assert torch.allclose(found, to_pixels(images) + EPS * uphill, atol=1e-6)


@pytest.mark.parametrize("start", [False, True])
def test_pgd_on_a_linear_network_reaches_the_corner(start):
    network, images, labels = linear(1), draw(), torch.arange(12) % 2
    weight = network[1].weight.detach()
    uphill = (weight[1 - labels] - weight[labels]).view(12, 3, 8, 8).sign()
    corner = (to_pixels(images) + EPS * uphill).clamp(0, 1)
    g = torch.Generator().manual_seed(2)
    found = attacked(network, images, labels, PIXELS, Attack(10, random_start=start), g)
    assert torch.allclose(to_pixels(found), corner, atol=1e-6)


def test_a_random_start_is_one():
    images, labels = draw(low=0.3, high=0.7), torch.zeros(12, dtype=torch.int64)

    def flat(x):  # no gradient: what is left is the start
        return torch.zeros(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)

    found = [
        attacked(flat, images, labels, PIXELS, Attack(3, random_start=True), torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    moved = (to_pixels(found[0]) - to_pixels(images)) / EPS
    assert float(moved.std()) == pytest.approx(3**-0.5, rel=0.05)  # uniform in [-1, 1]


@pytest.fixture(scope="module")
def trained():
    """A small network with batch norm and dropout that learned where the bright spot is."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(512, 4)
    )
    labels = torch.arange(200) % 4
    pixels = 0.3 + 0.25 * torch.rand(200, 3, 8, 8)
    for row, label in enumerate(labels.tolist()):
        pixels[row, :, 2 * label : 2 * label + 2] += 0.06
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(to_input(pixels)), labels).backward()
        optimizer.step()
    return network, to_input(pixels), labels


def accuracy(network, images, labels):
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def test_more_steps_hurt_at_least_as_much(trained):
    network, images, labels = trained
    with evaluating(network):
        shares = [accuracy(network, images, labels)]
        shares += [accuracy(network, attacked(network, images, labels, PIXELS, ATTACKS[name]), labels)
                   for name in ("fgsm", "pgd-10", "pgd-20")]  # fmt: skip
        losses = []
        for attack in (Attack(1), Attack(10)):
            changed = attacked(network, images, labels, PIXELS, attack)
            losses.append(float(F.cross_entropy(network(changed), labels).detach()))
    assert shares[0] > 0.95
    assert shares[0] > shares[1] >= shares[2] >= shares[3]
    assert losses[1] >= losses[0]


def test_the_network_is_left_as_it_was(trained):
    network, images, labels = trained
    network.train()
    network[1].eval()
    network.zero_grad(set_to_none=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    original = images.clone()
    with evaluating(network):
        assert not network.training
        attacked(network, images, labels, PIXELS, ATTACKS["pgd-10"])
    assert network.training
    assert not network[1].training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(images, original)
    assert not images.requires_grad


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least 1 step"):
        Attack(0)
