"""Localization metrics of activation maps against known boxes.

Boxes are ``(x0, y0, x1, y1)`` in pixels, x1 and y1 exclusive. An image has one or more: a tensor ``(N, 4)``, or a
sequence of N tensors ``(k, 4)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from metamixer.evaluation.localization.connected_components import Floats, boxes_at, overlaps

Boxes = Tensor | Sequence[Tensor]
THRESHOLDS: tuple[float, ...] = tuple(round(0.01 * step, 2) for step in range(100))
OVERLAPS = (0.3, 0.5, 0.7)
"""The thresholds of MaxBoxAccV2: an object is found if the intersection over union is at least this."""


def each_box(boxes: Boxes) -> list[Tensor]:
    """The boxes of every image, ``(k, 4)`` float64."""
    return [box.double().cpu().reshape(-1, 4) for box in boxes]


def best_overlaps(maps: Tensor, boxes: Boxes, thresholds: Sequence[float] = THRESHOLDS) -> Floats:
    """The best overlap of any contour of a map with any box of the image, for each threshold.

    ``(N, H, W)`` and N boxes -> ``(N, len(thresholds))``. MaxBoxAccV2 takes the best contour, MaxBoxAcc the largest one
    (Choe et al., arXiv 2007.04178, section 4.2). Boxes and overlaps are those of the official code; see
    :mod:`metamixer.evaluation.localization.connected_components`.
    """
    return np.concatenate(
        [same_overlaps(one, [truth], thresholds) for one, truth in zip(maps, each_box(boxes), strict=True)]
    )


def same_overlaps(one: Tensor, boxes: Boxes, thresholds: Sequence[float] = THRESHOLDS) -> Floats:
    """:func:`best_overlaps` of the same map ``(H, W)`` with the boxes of N images."""
    rows, found = boxes_at(one, thresholds)
    best = np.zeros((len(boxes), len(thresholds)))
    for own, truth in zip(best, each_box(boxes), strict=True):
        np.maximum.at(own, rows, overlaps(found, truth.numpy()).max(1))
    return best


def choose_thresholds(best: Floats, thresholds: Sequence[float] = THRESHOLDS) -> tuple[float, ...]:
    """For each of ``OVERLAPS`` the threshold that finds most objects: ``(N, len(thresholds)) -> 3`` numbers.

    Ties are resolved by taking the middle one. Choe et al. choose on the test images, once for each network; pass
    overlaps on held-out images instead, so that thresholds are not chosen on the reported images.

    >>> choose_thresholds(np.array([[0.1, 0.6, 0.6, 0.2], [0.1, 0.4, 0.4, 0.4]]), [0.2, 0.4, 0.6, 0.8])
    (0.6, 0.6, 0.6)
    """
    chosen = []
    for least in OVERLAPS:
        found = (best >= least).sum(0)
        ties = np.flatnonzero(found == found.max())
        chosen.append(float(thresholds[int(ties[len(ties) // 2])]))
    return tuple(chosen)


def points_inside(maps: Tensor, boxes: Boxes, tolerance: float = 0.0) -> Tensor:
    """The pointing game (Zhang et al., arXiv 1608.00507): is the maximum inside a box? ``(N, H, W) -> (N,)`` bool.

    Args:
        maps: activation maps. A map that is 0 everywhere is a miss. Of equal maxima the first one counts.
        boxes: boxes of each image.
        tolerance: the largest accepted distance from a box in pixels; the paper uses 15 for images of about 500.
    """
    width = maps.shape[2]
    highest, place = maps.flatten(1).max(1)
    centres = torch.stack([place % width, place // width], 1).double().cpu() + 0.5
    hits = []
    for centre, truth in zip(centres, each_box(boxes), strict=True):
        away = torch.maximum(truth[:, :2] - centre, centre - truth[:, 2:]).clamp_min(0).norm(dim=1)
        hits.append(bool((away <= tolerance).any()))
    return torch.tensor(hits) & (highest > 0).cpu()


def energy_inside(maps: Tensor, boxes: Boxes) -> Tensor:
    """The share of the sum of a map inside the boxes (Wang et al., arXiv 1910.01279): ``(N, H, W) -> (N,)`` float64.

    A pixel is inside a box if its centre is. The result is 0 for a map that is 0 everywhere.
    """
    maps = maps.double().cpu()
    y, x = (torch.arange(side, dtype=torch.float64) + 0.5 for side in maps.shape[1:])
    shares = []
    for one, truth in zip(maps, each_box(boxes), strict=True):
        across = (truth[:, 0, None] <= x) & (x < truth[:, 2, None])
        down = (truth[:, 1, None] <= y) & (y < truth[:, 3, None])
        inside = (down[:, :, None] & across[:, None, :]).any(0)
        shares.append(one[inside].sum() / one.sum() if one.any() else one.sum())
    return torch.stack(shares)


def correlations(maps: Tensor) -> Tensor:
    """Pearson correlation of the maps of every two networks, for each image: ``(P, N, H, W) -> (N, P, P)`` float64.

    NaN if one of the two maps is constant.
    """
    flat = maps.double().cpu().flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    length = centred.norm(dim=2, keepdim=True)
    unit = centred / torch.where(length > 0, length, torch.nan)
    return torch.einsum("pnx,qnx->npq", unit, unit)
