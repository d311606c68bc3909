"""Images with the activation maps of every network, side by side."""

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
    """What one network sees in an image.

    Args:
        name: of the network.
        predicted: the class that it names.
        confidence: its probability for that class.
        map: ``(H, W)`` float32 in [0, 1], the activation map; None for a network that has no feature map.
        box: ``(4,)`` x0, y0, x1, y1 in pixels, around the largest part of the map above the threshold; None where the
            map is missing or empty.
    """

    name: str
    predicted: str
    confidence: float
    map: Tensor | None
    box: Tensor | None


@dataclass(frozen=True, eq=False)
class Shown:
    """An image and what every network sees in it.

    Args:
        image: ``(C, H, W)`` uint8.
        label: its class.
        truth: ``(k, 4)`` float32, the true boxes; None where they are not known.
        networks: one for each.
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
    """Look at a few images: the maps are of the class that each network names.

    Args:
        cohort: the networks; they are left as they were.
        images: ``(n, C, H, W)`` uint8.
        labels: ``(n,)`` int64.
        classes: the name of every class.
        mean: of every channel of the training images, 255 = 1.
        std: their standard deviation.
        boxes: of each image, or None.
        names: of the networks; None: their numbers.
        thresholds: of the maps, for the boxes; one, or one for each network, such as those that :func:`localize` chose
            for an overlap of one half.

    Raises:
        NoMap: no network has a feature map.
        StagesNotFound: the stages of a network are not known.
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
