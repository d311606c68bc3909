"""Arithmetic with log probabilities."""

from __future__ import annotations

import math

from torch import Tensor


def log_mean(log_probabilities: Tensor) -> Tensor:
    """``(P, ...) -> (...)``: the log of the mean of P probabilities.

    >>> import torch
    >>> log_mean(torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()).exp()
    tensor([0.7500, 0.2500])
    """
    return log_probabilities.logsumexp(0) - math.log(len(log_probabilities))
