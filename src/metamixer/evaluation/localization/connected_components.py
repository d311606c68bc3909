"""From a map to boxes: the connected parts above a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


def boxes_at(values: Tensor, thresholds: Sequence[float]) -> tuple[NDArray[np.int64], Floats]:
    """The boxes of all connected parts (8 neighbours) of a map, at each threshold.

    All thresholds are labelled in one call, as slices of a volume that do not touch each other.

    Args:
        values: ``(H, W)`` in [0, 1].
        thresholds: a place is part of the foreground if its value is at least that.

    Returns:
        ``(n,)`` which threshold, ascending, and ``(n, 4)`` the boxes.

    >>> rows, boxes = boxes_at(torch.tensor([[0.0, 0.9, 0.4], [0.0, 0.0, 0.0]]), [0.2, 0.5])
    >>> rows.tolist(), boxes.tolist()
    ([0, 1], [[1.0, 0.0, 3.0, 1.0], [1.0, 0.0, 2.0, 1.0]])
    """
    from scipy import ndimage

    above = values.cpu().numpy()[None] >= np.asarray(thresholds, dtype=np.float32)[:, None, None]
    joined = np.zeros((3, 3, 3), dtype=bool)
    joined[1] = True
    labels, _ = ndimage.label(above, joined)
    found = sorted((t.start, x.start, y.start, x.stop, y.stop) for t, y, x in ndimage.find_objects(labels))
    table = np.array(found, dtype=np.float64).reshape(-1, 5)
    return table[:, 0].astype(np.int64), table[:, 1:]


def largest_box(values: Tensor, threshold: float) -> Tensor | None:
    """``(4,)``: the box of the part with the most pixels; None where no value reaches the threshold or all are 0."""
    from scipy import ndimage

    array = values.cpu().numpy()
    if not array.any():
        return None
    labels, count = ndimage.label(array >= threshold, np.ones((3, 3), dtype=bool))
    if not count:
        return None
    part = int(np.bincount(labels.ravel())[1:].argmax())
    y, x = ndimage.find_objects(labels)[part]
    return torch.tensor([x.start, y.start, x.stop, y.stop], dtype=torch.float32)


def overlaps(boxes: Floats, truth: Floats) -> Floats:
    """Intersection over union: ``(n, 4), (k, 4) -> (n, k)``."""
    low = np.maximum(boxes[:, None, :2], truth[:, :2])
    high = np.minimum(boxes[:, None, 2:], truth[:, 2:])
    shared = (high - low).clip(0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None] + (truth[:, 2:] - truth[:, :2]).prod(1)
    ious: Floats = shared / np.maximum(area - shared, 1e-12)
    return ious
