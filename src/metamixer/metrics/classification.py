"""Classification metrics: accuracies, and proper scores of the probabilities.

Every function takes log-probabilities ``(N, C)`` and labels ``(N,)`` and computes in float64: in float32 a sum over
many images loses the digits in which two networks differ. Logs are passed because a probability can underflow to 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def checked(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Check the shapes and labels, and return the log-probabilities in float64.

    Raises:
        ValueError: there are no images, a shape is wrong, or a label is not a class.
    """
    if log_probabilities.ndim != 2 or labels.shape != log_probabilities.shape[:1]:
        raise ValueError(
            f"log-probabilities {tuple(log_probabilities.shape)} and labels {tuple(labels.shape)}: "
            "expected (N, C) and (N,)"
        )
    if not len(labels):
        raise ValueError("there are no images to count")
    if not 0 <= int(labels.min()) <= int(labels.max()) < log_probabilities.shape[1]:
        raise ValueError(
            f"labels from {int(labels.min())} to {int(labels.max())}, there are {log_probabilities.shape[1]} classes"
        )
    return log_probabilities.double()


def accuracy(log_probabilities: Tensor, labels: Tensor) -> float:
    """The share of images whose most likely class is the label: ``(N, C), (N,) ->`` a share.

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([0, 0]))
    0.5
    """
    return float((checked(log_probabilities, labels).argmax(1) == labels).sum()) / len(labels)


def top_k(log_probabilities: Tensor, labels: Tensor, k: int = 5) -> float | None:
    """The share of images whose label is among the ``k`` most likely classes; None if there are at most k classes."""
    scores = checked(log_probabilities, labels)
    if scores.shape[1] <= k:
        return None
    return float((scores.topk(k, 1).indices == labels[:, None]).any(1).sum()) / len(labels)


def confusion(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """``(N, C), (N,) -> (C, C)`` int64: the number of images by true class (row) and predicted class (column)."""
    scores = checked(log_probabilities, labels)
    classes = scores.shape[1]
    return torch.bincount(labels * classes + scores.argmax(1), minlength=classes**2).view(classes, classes)


def per_class(log_probabilities: Tensor, labels: Tensor) -> list[float | None]:
    """The accuracy on the images of each class; None for a class without images."""
    counts = confusion(log_probabilities, labels)
    pairs = zip(counts.diag().tolist(), counts.sum(1).tolist(), strict=True)
    return [right / count if count else None for right, count in pairs]


def nll(log_probabilities: Tensor, labels: Tensor) -> float:
    """The mean negative log-likelihood in nats."""
    return float(-checked(log_probabilities, labels).gather(1, labels[:, None]).mean())


def brier(log_probabilities: Tensor, labels: Tensor) -> float:
    """The Brier score: the squared distance to the one-hot label, summed over the classes, in [0, 2].

    Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950). As in the
    original, it is not divided by the number of classes.

    >>> round(brier(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0])), 6)
    0.5
    """
    errors = checked(log_probabilities, labels).exp()
    errors[torch.arange(len(labels)), labels] -= 1
    return float(errors.square().sum(1).mean())
