import pytest
from torch import nn

from metamixer.core.eval_mode import evaluating


def modes(network):
    return [module.training for module in network.modules()]


def half_frozen():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())).train()
    network[1][0].eval()
    return network


def test_every_module_returns_to_its_own_mode():
    first, second = half_frozen(), nn.Sequential(nn.Dropout()).eval()
    before = modes(first), modes(second)
    assert before == ([True, True, True, False, True], [False, False])
    with evaluating(first, second):
        assert not any(modes(first) + modes(second))
    assert (modes(first), modes(second)) == before


def test_blocks_inside_of_blocks_and_modules_named_twice():
    network = half_frozen()
    before = modes(network)
    with evaluating(network, network[1]):
        with evaluating(network[1]):
            assert not any(modes(network))
        assert not any(modes(network))
    assert modes(network) == before


def test_an_error_gives_the_modes_back():
    network = half_frozen()
    before = modes(network)
    with pytest.raises(ConnectionError), evaluating(network):
        raise ConnectionError
    assert modes(network) == before
