"""Weakly supervised localization: how well networks find objects without training on boxes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.json_values import Count, Maybe, Number, plain
from metamixer.data import EvalLoader, ImageSet, normalise
from metamixer.evaluation.localization.activation_maps import NoMap, activation_maps, map_stages
from metamixer.evaluation.localization.box_accuracy import (
    OVERLAPS,
    Boxes,
    best_overlaps,
    choose_thresholds,
    correlations,
    each_box,
    energy_inside,
    points_inside,
)
from metamixer.evaluation.localization.centre_baseline import centre_scores


@dataclass(frozen=True)
class Located:
    """How well the maps of one network, or the centre box, find the objects.

    Args:
        name: name of the network.
        max_box_acc: share of images whose object was found, for each intersection over union of MaxBoxAccV2.
        thresholds: thresholds of the maps, chosen on held-out images for each of these.
        pointing: share of images in which the maximum of the map is inside a box.
        energy: mean share of the map inside the boxes.
    """

    name: str
    max_box_acc: Mapping[str, Number] = field(default_factory=dict)
    thresholds: Mapping[str, Number] = field(default_factory=dict)
    pointing: Number = math.nan
    energy: Number = math.nan

    @property
    def max_box_acc_v2(self) -> float:
        """The mean over the three overlaps."""
        return sum(self.max_box_acc.values()) / len(self.max_box_acc) if self.max_box_acc else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"max_box_acc_v2": self.max_box_acc_v2, **asdict(self)}


@dataclass(frozen=True)
class Localization:
    """The result of :func:`localize`.

    Args:
        images: number of measured images.
        held_out: number of images on which thresholds were chosen.
        networks: one result for each network that has a feature map.
        centre_box: result of the baseline, with its size chosen on the same held-out images.
        map_agreement: mean correlation of the maps of every two networks; None if all maps of one are constant.
        stages: for each network the module whose output is the map.
        notes: what was left out, as sentences.
        method: method of the maps.
        protocol: protocol of boxes and overlaps: ``wsolevaluation``; empty in older files.
    """

    images: Count = 0
    held_out: Count = 0
    networks: tuple[Located, ...] = ()
    centre_box: Located = Located("centre box")
    map_agreement: tuple[tuple[Maybe, ...], ...] = ()
    stages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    method: str = "grad-cam"
    protocol: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in ``evaluation.json``."""
        networks = [one.as_dict() for one in self.networks]
        found: dict[str, Any] = plain(asdict(self) | {"networks": networks, "centre_box": self.centre_box.as_dict()})
        return found


def localize(
    cohort: Cohort | Sequence[nn.Module],
    images: ImageSet,
    boxes: Boxes,
    *,
    held_out: tuple[ImageSet, Boxes],
    mean: Sequence[float],
    std: Sequence[float],
    names: Sequence[str] | None = None,
    tolerance: float = 0.0,
    batch_size: int = 128,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Localization:
    """Compare the activation maps of the true class of every image, in every network, with boxes.

    Thresholds are chosen on ``held_out``, one for each network and overlap, and applied to ``images``.

    Args:
        cohort: the networks. They run one by one in evaluation mode and are unchanged afterwards.
        images: N labelled images.
        boxes: boxes of the images, ``(N, 4)`` or N tensors ``(k, 4)`` with k >= 1.
        held_out: other images with boxes, such as the validation split.
        mean: mean of every channel of the training images, 255 = 1.
        std: standard deviation of every channel.
        names: names of the networks; None: their indices.
        tolerance: tolerance of the pointing game in pixels.
        batch_size: number of images per batch.
        workers: number of processes that decode images from disk.
        progress: called as progress(done, total), in images.

    Raises:
        ValueError: boxes and images do not match.
        NoMap: no network has a feature map. If only some have none, the notes say so.
        StagesNotFound: no stages were found in a network.
    """
    networks = list(cohort.peers if isinstance(cohort, Cohort) else cohort)
    for part, own in ((images, boxes), held_out):
        if len(part) != len(own) or not len(part) or not all(len(box) for box in each_box(own)):
            raise ValueError(f"boxes for {len(own)} of {len(part)} images: expected at least one box for each")
    device = next(networks[0].parameters()).device
    titles = list(names or map(str, range(len(networks))))
    first = normalise(images.fetch(torch.arange(1)).to(device), mean, std)
    found_stages = map_stages(cohort, first)
    stages = [stage for stage in found_stages if isinstance(stage, str)]
    refused = [(name, stage) for name, stage in zip(titles, found_stages, strict=True) if isinstance(stage, NoMap)]
    if not stages:
        raise refused[0][1]
    measured = [index for index, stage in enumerate(found_stages) if isinstance(stage, str)]
    networks, titles = [networks[index] for index in measured], [titles[index] for index in measured]
    total, done = len(images) + len(held_out[0]), 0

    def mapped(part: ImageSet, own: Boxes) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Yield maps ``(P, B, H, W)`` and boxes for each batch."""
        nonlocal done
        truth, start = each_box(own), 0
        for batch in EvalLoader(part, mean, std, batch_size, device, workers):
            maps = [
                activation_maps(network, batch.images, batch.labels, stage=stage)[0].cpu()
                for network, stage in zip(networks, stages, strict=True)
            ]
            yield torch.stack(maps), truth[start : start + len(batch)]
            start += len(batch)
            done += len(batch)
            if progress is not None:
                progress(done, total)

    best = [np.stack([best_overlaps(one, truth) for one in maps]) for maps, truth in mapped(*held_out)]
    thresholds = [choose_thresholds(rows) for rows in np.concatenate(best, axis=1)]
    found, points, energies, alike = [], [], [], []
    for maps, truth in mapped(images, boxes):
        overlap = [best_overlaps(one, truth, chosen) for one, chosen in zip(maps, thresholds, strict=True)]
        found.append(np.stack(overlap) >= np.array(OVERLAPS))
        points.append(torch.stack([points_inside(one, truth, tolerance) for one in maps]))
        energies.append(torch.stack([energy_inside(one, truth) for one in maps]))
        alike.append(correlations(maps))
    shares = np.concatenate(found, axis=1).mean(1)
    columns = zip(titles, shares, thresholds, torch.cat(points, 1), torch.cat(energies, 1), strict=True)
    centre = centre_scores(images.size, boxes, held_out[1], tolerance)
    return Localization(
        images=len(images),
        held_out=len(held_out[0]),
        networks=tuple(
            Located(name, _keyed(share), _keyed(chosen), float(point.double().mean()), float(energy.mean()))
            for name, share, chosen, point, energy in columns
        ),
        centre_box=Located("centre box", _keyed(centre[1]), _keyed(centre[0]), *centre[2:]),
        map_agreement=tuple(
            tuple(None if value != value else value for value in row) for row in torch.cat(alike).nanmean(0).tolist()
        ),
        stages=tuple(stages),
        protocol="wsolevaluation",
        notes=tuple(f"{name} was not measured: {error}" for name, error in refused),
    )


def _keyed(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    return {str(overlap): float(value) for overlap, value in zip(OVERLAPS, values, strict=True)}
