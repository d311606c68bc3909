"""Slow and plain helpers that tests compare with: written apart from the code under test, in float64."""

import torch
from torch.nn import functional as F

CONVOLUTIONS = None, F.conv1d, F.conv2d, F.conv3d


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, scale=1.0):
    """Normal numbers of a seed of their own."""
    return scale * torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def log_softmax(z):
    """``(C,) -> (C,)``."""
    return z - z.max() - (z - z.max()).exp().sum().log()


def softmax(z):
    """``(C,) -> (C,)``."""
    return (z - z.max()).exp() / (z - z.max()).exp().sum()


def slow_layer(x, weights, name, stride=1):
    """A linear layer or a convolution from its weights by name, its size kept but for the stride."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if x.ndim == 2:
        return x @ weight.T + bias
    return CONVOLUTIONS[x.ndim - 2](x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)
