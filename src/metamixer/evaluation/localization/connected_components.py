"""Boxes from a map as in the official code of MaxBoxAccV2: contours of the regions above a threshold.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, arXiv 2001.07437, and its code
``wsolevaluation``, with the evaluation of all contours of arXiv 2007.04178. Maps have 256 levels, the foreground is
strictly above a share of the highest level, holes have contours too, and boxes include their last pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

_FOUR = np.zeros((3, 3, 3), dtype=bool)
_FOUR[1] = [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
_EIGHT = np.zeros((3, 3, 3), dtype=bool)
_EIGHT[1] = True


def foreground(values: Tensor, thresholds: Sequence[float]) -> NDArray[np.bool_]:
    """``(H, W)`` in [0, 1] -> ``(T, H, W)``: the pixels above each threshold, a share of the maximum of the map.

    >>> foreground(torch.tensor([[0.0, 0.5, 1.0]]), [0.0, 0.5]).tolist()
    [[[False, True, True]], [[False, False, True]]]
    """
    levels = (values.float().cpu().numpy() * np.float32(255)).astype(np.uint8)
    cuts = [int(threshold * int(levels.max())) for threshold in thresholds]
    return levels[None] > np.array(cuts, dtype=np.uint8)[:, None, None]


def boxes_at(values: Tensor, thresholds: Sequence[float]) -> tuple[NDArray[np.int64], Floats]:
    """The boxes of all contours of a map at each threshold: outer contours, and those of holes.

    Regions are connected by 8 neighbours, holes by 4. All thresholds are labelled in one call, as slices of a volume
    that are not connected.

    Args:
        values: ``(H, W)`` in [0, 1].
        thresholds: shares of the maximum; the foreground is above.

    Returns:
        ``(n,)`` the index of the threshold, ascending, and ``(n, 4)`` the boxes (x0, y0, x1, y1), which end at the
        pixel after the last one of the contour, or at the last one of the map. If no pixel is above a threshold, there
        is one box (0, 0, 0, 0).

    >>> rows, boxes = boxes_at(torch.tensor([[0.0, 1.0, 0.4, 0.0], [0.0, 0.0, 0.0, 0.0]]), [0.2, 0.5])
    >>> rows.tolist(), boxes.tolist()
    ([0, 1], [[1.0, 0.0, 3.0, 1.0], [1.0, 0.0, 2.0, 1.0]])
    """
    from scipy import ndimage

    above = foreground(values, thresholds)
    height, width = above.shape[1:]
    found = [
        (t.start, x.start, y.start, x.stop, y.stop) for t, y, x in ndimage.find_objects(ndimage.label(above, _EIGHT)[0])
    ]
    # Holes are background that is not connected to a frame around the map; their contours are foreground pixels.
    framed = np.pad(~above, ((0, 0), (1, 1), (1, 1)), constant_values=True)
    found += [
        (t.start, x.start - 2, y.start - 2, x.stop, y.stop)
        for t, y, x in ndimage.find_objects(ndimage.label(framed, _FOUR)[0])
        if y.start > 0
    ]
    found += [(int(row), 0, 0, 0, 0) for row in np.flatnonzero(~above.any((1, 2)))]
    table = np.array(sorted(found), dtype=np.float64).reshape(-1, 5)
    return table[:, 0].astype(np.int64), np.minimum(table[:, 1:], [width, height, width - 1, height - 1])


def largest_box(values: Tensor, threshold: float) -> Tensor | None:
    """``(4,)``: the box of the largest region above the threshold; None for a map that is 0 everywhere."""
    from scipy import ndimage

    above = foreground(values, [threshold])
    if not above.any():
        return None
    labels = ndimage.label(above, _EIGHT)[0]
    part = int(np.bincount(labels.ravel())[1:].argmax())
    _, y, x = ndimage.find_objects(labels)[part]
    return torch.tensor([x.start, y.start, x.stop, y.stop], dtype=torch.float32)


def overlaps(boxes: Floats, truth: Floats) -> Floats:
    """Intersection over union of boxes with inclusive ends, in whole pixels: ``(n, 4), (k, 4) -> (n, k)``."""
    boxes, truth = np.trunc(boxes), np.trunc(truth)
    low = np.maximum(boxes[:, None, :2], truth[:, :2])
    high = np.minimum(boxes[:, None, 2:], truth[:, 2:])
    shared = (high - low + 1).clip(0).prod(2)
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)[:, None] + (truth[:, 2:] - truth[:, :2] + 1).prod(1)
    ious: Floats = shared / (area - shared)
    return ious
