"""Images with the activation maps of all networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.eval_mode import evaluating
from metamixer.core.types import logits_of
from metamixer.data import normalise
from metamixer.evaluation.localization.activation_maps import NoMap, activation_maps, map_stages
from metamixer.evaluation.localization.box_accuracy import Boxes
from metamixer.evaluation.localization.connected_components import largest_box


@dataclass(frozen=True, eq=False)
class LookedAt:
    """Prediction and activation map of a network for an image.

    Args:
        name: name of the network.
        predicted: the predicted class.
        confidence: its probability.
        map: activation map ``(H, W)`` float32 in [0, 1]; None if the network has no feature map.
        box: ``(4,)`` x0, y0, x1, y1 in pixels, around the largest region of the map above the threshold; None if the
            map is missing or empty.
    """

    name: str
    predicted: str
    confidence: float
    map: Tensor | None
    box: Tensor | None


@dataclass(frozen=True, eq=False)
class Shown:
    """An image with the predictions and maps of all networks.

    Args:
        image: ``(C, H, W)`` uint8.
        label: the true class.
        truth: the true boxes ``(k, 4)`` float32; None if they are not known.
        networks: one entry for each network.
    """

    image: Tensor
    label: str
    truth: Tensor | None
    networks: tuple[LookedAt, ...]


def gallery(
    cohort: Cohort | Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    boxes: Boxes | None = None,
    names: Sequence[str] | None = None,
    thresholds: float | Sequence[float] = 0.3,
) -> tuple[Shown, ...]:
    """Compute predictions and activation maps, of the predicted classes, for a few images.

    Args:
        cohort: the networks; they are unchanged afterwards.
        images: ``(n, C, H, W)`` uint8.
        labels: ``(n,)`` int64.
        classes: the name of every class.
        mean: mean of every channel of the training images, 255 = 1.
        std: standard deviation of every channel.
        boxes: boxes of each image, or None.
        names: names of the networks; None: their indices.
        thresholds: threshold of the maps for the boxes, one for all networks or one for each, such as those that
            :func:`localize` chose for an overlap of 0.5.

    Raises:
        NoMap: no network has a feature map.
        StagesNotFound: no stages were found in a network.
    """
    networks = list(cohort.peers if isinstance(cohort, Cohort) else cohort)
    device = next(networks[0].parameters()).device
    pixels = normalise(images.to(device), mean, std)
    levels = [thresholds] * len(networks) if isinstance(thresholds, float | int) else list(thresholds)
    titles = list(names or map(str, range(len(networks))))
    seen: list[list[LookedAt]] = [[] for _ in images]
    stages = map_stages(cohort, pixels[:1])
    if all(isinstance(stage, NoMap) for stage in stages):
        raise next(stage for stage in stages if isinstance(stage, NoMap))
    for network, stage, name, level in zip(networks, stages, titles, levels, strict=True):
        maps: Sequence[Tensor | None] = [None] * len(images)
        if isinstance(stage, str):
            found, logits = activation_maps(network, pixels, stage=stage)
            maps = list(found.float().cpu())
        else:
            with torch.no_grad(), evaluating(network):
                logits = logits_of(network(pixels))
        confidences, predicted = (each.tolist() for each in logits.float().softmax(1).max(1))
        for row, one in enumerate(maps):
            box = None if one is None else largest_box(one, max(level, 1e-6))
            seen[row].append(LookedAt(name, classes[predicted[row]], confidences[row], one, box))
    return tuple(
        Shown(
            image=image.cpu(),
            label=classes[label],
            truth=None if boxes is None else torch.as_tensor(boxes[row]).float().cpu().reshape(-1, 4),
            networks=tuple(seen[row]),
        )
        for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True))
    )
