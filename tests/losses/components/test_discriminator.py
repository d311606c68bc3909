"""One backward pass of both players' losses against two updates with two optimizers, each with the other frozen."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from metamixer.losses.components.discriminator import Discriminator, least_squares, untouched
from metamixer.losses.functional import layer, same_size
from tests.oracle import draw


def players(axes=2, seed=0):
    """A network that makes features, a discriminator, the network's input and another network's features."""
    torch.manual_seed(seed)
    sizes = (5, 6, 4)[:axes]
    network = nn.Sequential(layer(2, 4, axes, size=3), nn.Tanh()).double()
    return network, Discriminator(4, axes, width=5).double(), draw(6, 2, *sizes, seed=seed), draw(6, 4, *sizes, seed=9)


def discriminator_loss(discriminator, real, fake):
    return ((1 - discriminator(real)) ** 2).mean() + (discriminator(fake) ** 2).mean()


def generator_loss(discriminator, fake):
    return ((1 - discriminator(fake)) ** 2).mean()


def separate_gradients(network, discriminator, x, real):
    """Each player's gradients of its own loss, with the other player's weights frozen."""
    network.requires_grad_(False)
    of_discriminator = torch.autograd.grad(
        discriminator_loss(discriminator, real, network(x)), list(discriminator.parameters())
    )
    network.requires_grad_(True)
    discriminator.requires_grad_(False)
    of_network = torch.autograd.grad(generator_loss(discriminator, network(x)), list(network.parameters()))
    discriminator.requires_grad_(True)
    return of_network, of_discriminator


def gradients(module):
    return [weight.grad for weight in module.parameters()]


# The device


@pytest.mark.parametrize("axes", [0, 1, 2, 3])
def test_one_backward_has_both_players_gradients(axes):
    network, discriminator, x, real = players(axes)
    of_network, of_discriminator = separate_gradients(network, discriminator, x, real)
    game = least_squares(discriminator, real, network(x))
    (game.discriminator + game.generator).backward()
    torch.testing.assert_close(gradients(network), list(of_network))
    torch.testing.assert_close(gradients(discriminator), list(of_discriminator))
    assert all(each.abs().max() > 1e-6 for each in (*of_network, *of_discriminator)), "nothing was compared"
    torch.testing.assert_close(game.discriminator, discriminator_loss(discriminator, real, network(x)))
    torch.testing.assert_close(game.generator, generator_loss(discriminator, network(x)))


def test_one_optimizer_goes_where_two_go():
    """Five steps with momentum, the two-player update written out: both losses before either player moves."""
    network, discriminator, x, real = players()
    twin, twins_discriminator = copy.deepcopy(network), copy.deepcopy(discriminator)
    start = copy.deepcopy(network)
    settings = {"lr": 0.1, "momentum": 0.9}
    both = torch.optim.SGD([*network.parameters(), *discriminator.parameters()], **settings)
    one = torch.optim.SGD(twin.parameters(), **settings)
    other = torch.optim.SGD(twins_discriminator.parameters(), **settings)
    for _ in range(5):
        game = least_squares(discriminator, real, network(x))
        both.zero_grad()
        (game.discriminator + game.generator).backward()
        both.step()
        of_network, of_discriminator = separate_gradients(twin, twins_discriminator, x, real)
        for optimizer, module, found in ((one, twin, of_network), (other, twins_discriminator, of_discriminator)):
            for weight, grad in zip(module.parameters(), found, strict=True):
                weight.grad = grad
            optimizer.step()
    torch.testing.assert_close(network.state_dict(), twin.state_dict())
    torch.testing.assert_close(discriminator.state_dict(), twins_discriminator.state_dict())
    moved = [(new - old).abs().max() for new, old in zip(network.parameters(), start.parameters(), strict=True)]
    assert max(moved) > 1e-3


def test_the_plain_sum_is_another_update():
    """Why there is a device at all: without it each loss reaches both players."""
    network, discriminator, x, real = players()
    of_network, of_discriminator = separate_gradients(network, discriminator, x, real)
    fake = network(x)
    (discriminator_loss(discriminator, real, fake) + generator_loss(discriminator, fake)).backward()
    assert (gradients(network)[0] - of_network[0]).norm() > 0.1 * of_network[0].norm()
    assert (gradients(discriminator)[0] - of_discriminator[0]).norm() > 0.1 * of_discriminator[0].norm()


class Reverse(torch.autograd.Function):
    """The identity, whose gradient changes its sign."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


def test_gradient_reversal_is_another_game():
    """It has the discriminator's gradients, and for the network those of -L_D: another direction than those of L_G.

    At one sample: -dL_D/dD = -2 D where the network wants dL_G/dD = -2 (1 - D): the more a discriminator is sure
    (D near 0), the less reversal teaches, and the more least squares do.
    """
    network, discriminator, x, real = players()
    of_network, of_discriminator = separate_gradients(network, discriminator, x, real)
    discriminator_loss(discriminator, real, Reverse.apply(network(x))).backward()
    torch.testing.assert_close(gradients(discriminator), list(of_discriminator))
    zero_sum = torch.autograd.grad(-discriminator_loss(discriminator, real, network(x)), list(network.parameters()))
    torch.testing.assert_close(gradients(network), list(zero_sum))
    assert (gradients(network)[0] - of_network[0]).norm() > 0.5 * of_network[0].norm()

    score = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    reversed_ = torch.autograd.grad(Reverse.apply(score).square().sum(), score)[0]
    wanted = torch.autograd.grad((1 - score).square().sum(), score)[0]
    assert reversed_.item() == pytest.approx(-0.2)
    assert wanted.item() == pytest.approx(-1.8)


# A module whose weights get no gradient


def test_untouched_gives_the_input_its_gradient_and_the_weights_none():
    _, discriminator, _, real = players()
    real.requires_grad_()
    weight = draw(6, seed=4)
    found = untouched(discriminator, real)
    wanted = discriminator(real)
    torch.testing.assert_close(found, wanted)
    (of_input,) = torch.autograd.grad((weight * wanted).sum(), real)
    (weight * found).sum().backward()
    torch.testing.assert_close(real.grad, of_input)
    assert of_input.abs().max() > 1e-6
    assert gradients(discriminator) == [None] * 6
    assert all(each.requires_grad for each in discriminator.parameters())
    found = untouched(discriminator, real.detach())
    assert not found.requires_grad


def test_untouched_with_weights_that_are_shared_inside():
    torch.manual_seed(0)
    one = nn.Linear(4, 4)
    module = nn.Sequential(one, nn.Tanh(), one).double()
    x = draw(3, 4).requires_grad_()
    found = untouched(module, x)
    torch.testing.assert_close(found, module(x))
    found.sum().backward()
    assert one.weight.grad is None
    assert x.grad.any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["batch norm", "spectral norm"])
def test_untouched_leaves_buffers_as_they_are(kind, training):
    """Both keep something of every call: in a step with two calls of the discriminator only its own player's counts."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5) if kind == "batch norm" else spectral_norm(nn.Linear(5, 5))
    module = nn.Sequential(nn.Linear(4, 5), norm, nn.Linear(5, 1)).double().train(training)
    module(draw(7, 4, seed=3))  # buffers that are not those of the start
    x = draw(7, 4).requires_grad_()
    before = copy.deepcopy(module.state_dict())
    found = untouched(module, x)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    twin = copy.deepcopy(module)
    wanted = twin(x)
    torch.testing.assert_close(found, wanted)
    changed = any(not torch.equal(twin.state_dict()[name], value) for name, value in before.items())
    assert changed == training, "the plain call does change them"
    torch.testing.assert_close(*(torch.autograd.grad(each.sum(), x)[0] for each in (found, wanted)))


@pytest.mark.parametrize("first", ["discriminator", "network"])
def test_bf16_autocast(first):
    """Autocast keeps the weights that it has cast for the rest of the block, and with them their graph or its absence.

    So both orders of the two calls are tried, the second on what the first left behind.
    """
    network, discriminator, x, real = (each.float() for each in players())
    fake = network(x).detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        if first == "network":
            generator = ((1 - untouched(discriminator, fake).float()) ** 2).mean()
            loss = discriminator_loss(lambda each: discriminator(each).float(), real, fake.detach())
        else:
            loss = discriminator_loss(lambda each: discriminator(each).float(), real, fake.detach())
            generator = ((1 - untouched(discriminator, fake).float()) ** 2).mean()
        game = least_squares(discriminator, real, fake)
    for value in game:
        assert value.dtype == torch.float32
    torch.testing.assert_close(game.discriminator, loss)
    torch.testing.assert_close(game.generator, generator)
    by_hand = torch.autograd.grad(loss + generator, [fake, *discriminator.parameters()])
    found = torch.autograd.grad(game.discriminator + game.generator, [fake, *discriminator.parameters()])
    torch.testing.assert_close(found, by_hand, rtol=0.05, atol=1e-3)  # sums of other order, in half precision
    discriminator.double()
    exact = torch.autograd.grad(
        discriminator_loss(discriminator, real.double(), fake.detach().double()), list(discriminator.parameters())
    )
    for rough, fine in zip(found[1:], exact, strict=True):
        assert F.cosine_similarity(rough.double().flatten(), fine.flatten(), 0) > 0.99


def test_bf16_features_outside_of_autocast_train_both_players():
    network, discriminator, x, real = (each.float() for each in players())
    with torch.autocast("cpu", torch.bfloat16):
        game = least_squares(discriminator, real.bfloat16(), network(x))
    (game.discriminator + game.generator).backward()
    for module in (network, discriminator):
        assert all(grad is not None and grad.isfinite().all() and grad.any() for grad in gradients(module))


# The game


class Scores(nn.Module):
    """A discriminator that reads its score off the features."""

    def forward(self, features):
        return features[:, 0]


@pytest.mark.parametrize(
    ("on_real", "on_fake", "discriminator", "generator", "accuracy"),
    [
        ([1.0, 1.0], [0.0, 0.0], 0.0, 1.0, 1.0),  # never wrong
        ([0.0, 0.0], [1.0, 1.0], 2.0, 0.0, 0.0),  # always wrong
        ([0.5, 0.5], [0.5, 0.5], 0.5, 0.25, 0.5),  # the equilibrium
        ([0.9, 0.2], [0.3, 0.7], (0.01 + 0.64 + 0.09 + 0.49) / 2, (0.49 + 0.09) / 2, 0.5),
        ([0.9, 0.8], [0.3, 0.7], (0.01 + 0.04 + 0.09 + 0.49) / 2, (0.49 + 0.09) / 2, 0.75),
    ],
)
def test_least_squares_in_numbers(on_real, on_fake, discriminator, generator, accuracy):
    real, fake = (torch.tensor(each, dtype=torch.float64)[:, None] for each in (on_real, on_fake))
    game = least_squares(Scores(), real, fake)
    assert [value.item() for value in game] == pytest.approx([discriminator, generator, accuracy])


def test_a_network_learns_the_distribution_of_the_other():
    """Features that start three units away come to where the real ones are, and their spread stays."""
    torch.manual_seed(0)
    shift = nn.Parameter(torch.tensor([3.0, -3.0]))
    discriminator = Discriminator(2, axes=0, width=16)
    optimizer = torch.optim.SGD([shift, *discriminator.parameters()], lr=0.1)
    distances = []
    for step in range(400):
        real, fake = draw(64, 2, seed=step).float(), draw(64, 2, seed=1000 + step).float() + shift
        game = least_squares(discriminator, real, fake)
        optimizer.zero_grad()
        (game.discriminator + game.generator).backward()
        optimizer.step()
        distances.append(shift.detach().norm().item())
    assert distances[0] > 4
    assert sum(distances[-100:]) / 100 < 1


# The discriminator


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("size", [(), (7,), (1,), (6, 5), (1, 1), (3, 4, 2)], ids=str)
def test_a_discriminator_has_one_score_a_sample_whatever_the_others_are(size, depth):
    torch.manual_seed(0)
    discriminator = Discriminator(3, len(size), width=4, depth=depth).double()
    features = draw(5, 3, *size)
    scores = discriminator(features)
    assert scores.shape == (5,)
    torch.testing.assert_close(torch.cat([discriminator(each[None]) for each in features]), scores)
    assert len(set(scores.tolist())) == 5


def test_a_discriminator_of_vectors_by_hand():
    torch.manual_seed(0)
    discriminator = Discriminator(3, axes=0, width=4).double()
    weights = dict(discriminator.named_parameters())
    x = draw(5, 3)
    for name in ("body.0", "body.2"):
        x = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        x = torch.where(x > 0, x, 0.2 * x)
    wanted = (x @ weights["last.weight"].T + weights["last.bias"])[:, 0]
    torch.testing.assert_close(discriminator(draw(5, 3)), wanted)


def soil():
    """Leave junk in the memory that comes next."""
    for count in (1_000, 5_000, 10_000, 20_000, 40_000, 80_000, 200_000):
        torch.full((count,), 1e20)


@pytest.mark.parametrize("size", [(1,), (1, 1), (3, 1), (2, 2, 1)], ids=str)
def test_maps_of_width_one_in_bf16(size):
    """The weights of strided convolutions over them got gradients from memory that nobody had written."""
    torch.manual_seed(0)
    discriminator, features = Discriminator(16, len(size)), torch.randn(8, 16, *size)
    weights = list(discriminator.parameters())
    wanted = torch.autograd.grad(discriminator(features).square().mean(), weights)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            loss = discriminator(features).float().square().mean()
        soil()
        for rough, fine in zip(torch.autograd.grad(loss, weights), wanted, strict=True):
            torch.testing.assert_close(rough, fine, rtol=0.05, atol=0.02)


def test_features_of_too_many_axes():
    with pytest.raises(ValueError, match="4 spatial axes"):
        Discriminator(3, axes=4)


# Sizes


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [((6,), (4,), (4,)), ((6, 4), (3, 4), (3, 4)), ((5, 3), (3, 5), (3, 3)), ((4, 2, 6), (4, 4, 4), (4, 2, 4))],
    ids=str,
)
def test_same_size_averages_down(one, other, common):
    """Cell i of n covers the positions from floor(i s / n) to ceil((i + 1) s / n)."""
    for size, found in zip((one, other), same_size(draw(2, 3, *one), draw(2, 3, *other)), strict=True):
        assert found.shape[2:] == common
        features = draw(2, 3, *size)
        for place in torch.cartesian_prod(*(torch.arange(n) for n in common)).view(-1, len(common)).tolist():
            box = tuple(slice(i * s // n, -(-(i + 1) * s // n)) for i, s, n in zip(place, size, common, strict=True))
            wanted = features[(slice(None), slice(None), *box)].flatten(2).mean(-1)
            torch.testing.assert_close(found[(slice(None), slice(None), *place)], wanted)


def test_same_size_of_other_axes_is_vectors():
    one, other = same_size(draw(2, 3, 4, 5), draw(2, 6, seed=1))
    torch.testing.assert_close(one, draw(2, 3, 4, 5).mean((2, 3)))
    torch.testing.assert_close(other, draw(2, 6, seed=1))
    one, other = same_size(draw(2, 3, 4, 5), draw(2, 6, 7, seed=1))
    torch.testing.assert_close(other, draw(2, 6, 7, seed=1).mean(2))
    assert one.shape == (2, 3)


def test_same_size_leaves_alone_what_fits():
    one, other = draw(2, 3, 4, 5), draw(2, 6, 4, 5)
    assert same_size(one, other)[0] is one
    assert same_size(one, other)[1] is other
