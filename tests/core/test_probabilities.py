import math

import torch

from metamixer.core.probabilities import log_mean
from tests.oracle import draw


def test_it_is_the_slow_mean():
    logs = draw(3, 4, 5).log_softmax(-1)
    found = log_mean(logs)
    assert found.shape == (4, 5)
    for row in range(4):
        for column in range(5):
            mean = sum(math.exp(logs[peer, row, column]) for peer in range(3)) / 3
            assert abs(float(found[row, column]) - math.log(mean)) < 1e-12
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(4, dtype=torch.float64))


def test_probabilities_too_small_for_their_dtype():
    """exp(-1000) is 0 in every dtype; the log of the mean is not."""
    logs = torch.tensor([[-1000.0], [-1000.0 + math.log(3)]])
    torch.testing.assert_close(log_mean(logs), torch.tensor([-1000 + math.log(2)]))
    nothing = torch.tensor([[-math.inf], [0.0]])
    torch.testing.assert_close(log_mean(nothing), torch.tensor([-math.log(2)]))


def test_the_gradient_is_the_share_of_each_peer():
    logs = draw(3, 2).requires_grad_()
    log_mean(logs).sum().backward()
    torch.testing.assert_close(logs.grad, logs.detach().exp() / logs.detach().exp().sum(0))
