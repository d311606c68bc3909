"""Diversity: ensembles of peers, and how much the predictions of peers differ.

Every function takes the log-probabilities ``(P, N, C)`` of P peers for the same N images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metamixer.core.probabilities import log_mean


def ensemble(log_probabilities: Tensor) -> Tensor:
    """``(P, N, C) -> (N, C)``: the log of the mean probability, in float64.

    >>> ensemble(torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]]).log()).exp()
    tensor([[0.7500, 0.2500]], dtype=torch.float64)
    """
    return log_mean(log_probabilities.double())


def agreement(log_probabilities: Tensor) -> float:
    """The share of images for which all peers predict the same class."""
    votes = log_probabilities.argmax(-1)
    return float((votes == votes[0]).all(0).double().mean())


def pairwise_agreement(log_probabilities: Tensor) -> Tensor:
    """``(P, N, C) -> (P, P)`` float64: the share of images for which two peers predict the same class."""
    votes = log_probabilities.argmax(-1)
    return (votes[:, None] == votes).double().mean(-1)


def disagreement(log_probabilities: Tensor) -> float | None:
    """The share of images for which two peers predict different classes, the mean over pairs; None for one peer."""
    peers = len(log_probabilities)
    if peers < 2:
        return None
    differ = 1 - pairwise_agreement(log_probabilities)
    return float(differ.sum()) / (peers * (peers - 1))


def pairwise_kl(log_probabilities: Tensor) -> Tensor:
    """``(P, N, C) -> (P, P)`` float64, nats: entry (i, j) is the mean over the images of KL(p_i || p_j)."""
    logs = log_probabilities.double()
    # exp(-inf) * (-inf) is NaN, but its limit is 0.
    rows = [
        torch.where(mine > -math.inf, mine.exp() * (mine - logs), 0.0).sum(-1).mean(-1)  # one row at a time: (P, N, C)
        for mine in logs
    ]
    return torch.stack(rows)
