"""A baseline without a network: a centred box whose size is chosen on held-out images."""

from __future__ import annotations

import torch
from torch import Tensor

from metamixer.evaluation.localization.box_accuracy import (
    OVERLAPS,
    THRESHOLDS,
    Boxes,
    choose_thresholds,
    energy_inside,
    points_inside,
    same_overlaps,
)
from metamixer.evaluation.localization.connected_components import foreground


def centre_map(size: tuple[int, int]) -> Tensor:
    """A pyramid ``(H, W)``: the part above any threshold is a centred box with the aspect ratio of the image.

    >>> centre_map((3, 3))[1]
    tensor([0., 1., 0.])
    """
    # Integers, divided last, so that both sides of the centre are equal bit by bit.
    y, x = ((2 * torch.arange(side) + 1 - side).abs() / side for side in size)
    far = torch.maximum(y[:, None], x)
    return (far.max() - far) / (far.max() - far.min()).clamp_min(1e-12)


def centre_scores(
    size: tuple[int, int], boxes: Boxes, held_out: Boxes, tolerance: float = 0.0
) -> tuple[tuple[float, ...], tuple[float, ...], float, float]:
    """Thresholds, shares of found objects at ``OVERLAPS``, pointing and energy of the centre box.

    The energy is that of a constant map on the box chosen for an overlap of 0.5.
    """
    pyramid = centre_map(size)
    thresholds = choose_thresholds(same_overlaps(pyramid, held_out, THRESHOLDS))
    best = same_overlaps(pyramid, boxes, thresholds)
    found = tuple(float((best[:, row] >= least).mean()) for row, least in enumerate(OVERLAPS))
    even = torch.from_numpy(foreground(pyramid, [thresholds[OVERLAPS.index(0.5)]])[0]).double()
    pointing = points_inside(pyramid.expand(len(boxes), -1, -1), boxes, tolerance).double().mean()
    energy = energy_inside(even.expand(len(boxes), -1, -1), boxes).mean()
    return thresholds, found, float(pointing), float(energy)
