"""Labels: class indices of any integer type, or soft labels with a distribution for each image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TOLERANCE = 1e-2  # allows for sums computed in half precision


def soft_targets(labels: Tensor, classes: int) -> Tensor:
    """``(B,)`` class indices or ``(B, C)`` soft or one-hot labels -> ``(B, C)`` float32.

    Args:
        labels: integers, or a distribution in each row.
        classes: the number of classes C.

    Raises:
        ValueError: another shape or type; on a CPU also a label out of range, or a row that is not a distribution.

    >>> soft_targets(torch.tensor([1, 0], dtype=torch.int32), 2)
    tensor([[0., 1.],
            [1., 0.]])
    """
    if found := wrong_labels(labels, classes):
        raise ValueError(found)
    if labels.ndim == 1:
        return F.one_hot(labels.long(), classes).float()
    return labels.float()


def class_indices(labels: Tensor) -> Tensor:
    """``(B,)`` int64: the labels themselves, or for soft labels the class with the largest share.

    >>> class_indices(torch.tensor([[0.2, 0.8], [0.6, 0.4]]))
    tensor([1, 0])
    """
    return labels.argmax(-1) if labels.ndim == 2 else labels.long()


def wrong_labels(labels: Tensor, classes: int) -> str:
    """An error message for invalid labels, or an empty string. Values are checked on a CPU only."""
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if labels.ndim == 1 and whole:
        if labels.device.type != "cpu" or not len(labels):
            return ""
        wrong = [label for label in (int(labels.min()), int(labels.max())) if not 0 <= label < classes]
        return f"there is a label {wrong[0]}; accepted: 0 to {classes - 1}, for {classes} classes" if wrong else ""
    if labels.ndim != 2 or labels.shape[1] != classes or labels.is_complex():
        kind = str(labels.dtype).removeprefix("torch.")
        return (
            f"labels are {tuple(labels.shape)} {kind}; accepted: class indices (B,) of an integer type, or soft labels "
            f"(B, {classes})"
        )
    try:
        if labels.device.type == "cpu":
            check_distribution(labels)
    except ValueError as error:
        return str(error)
    return ""


def check_distribution(targets: Tensor) -> None:
    """Raise ValueError unless each row of ``(B, C)`` is nonnegative and sums to 1. Synchronizes with the device."""
    off = ((targets.sum(-1) - 1).abs() > _TOLERANCE) | (targets < 0).any(-1)  # NaN passes: the loss checks find it
    if bool(off.any()):
        row = int(off.nonzero()[0])
        found = targets[row].detach()
        raise ValueError(
            f"row {row} of the targets sums to {float(found.sum()):g}, its least is {float(found.min()):g}; accepted: "
            "a distribution in each row, at least 0 and with the sum 1"
        )
