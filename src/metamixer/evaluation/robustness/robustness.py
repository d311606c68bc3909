"""Robustness: accuracy under common corruptions and adversarial attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from metamixer.core.eval_mode import evaluating
from metamixer.core.json_values import Maybe, Number, plain
from metamixer.data.augment import normalise
from metamixer.data.image_set import Device, ImageSet, conform
from metamixer.evaluation.networks import Panel
from metamixer.evaluation.robustness.attacks import ATTACKS, Attack, attacked
from metamixer.evaluation.robustness.cifar_c import CifarC
from metamixer.evaluation.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from metamixer.losses.components.adversarial_examples import Pixels

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total), in images."""

_BATCH = 250  # fixed, because random draws of corruptions depend on the start of a batch


@dataclass(frozen=True)
class Corrupted:
    """Accuracies of each network under each kind of corruption, in severities 1 to 5.

    Args:
        source: ``metamixer`` for images corrupted by this package, ``files`` for the official ones.
        kinds: accuracies by kind and network.
        mean: mean over all kinds and severities, by network.
    """

    source: str = "metamixer"
    kinds: Mapping[str, Mapping[str, tuple[Maybe, ...]]] = field(default_factory=dict)
    mean: Mapping[str, Maybe] = field(default_factory=dict)


@dataclass(frozen=True)
class UnderAttack:
    """Accuracies by network on images changed by at most ``eps``, for pixels in [0, 1]."""

    eps: Number = math.nan
    accuracy: Mapping[str, Maybe] = field(default_factory=dict)


@dataclass(frozen=True)
class Robustness:
    """The result of :func:`probe_all`.

    Args:
        images: number of images; None in files without it.
        clean: accuracies on the same unchanged images, by network.
        corruptions: accuracies under corruptions; None if not measured.
        attacks: accuracies under the measured attacks, by name.
    """

    images: int | None = None
    clean: Mapping[str, Maybe] = field(default_factory=dict)
    corruptions: Corrupted | None = None
    attacks: Mapping[str, UnderAttack] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in ``evaluation.json``, without the parts that were not measured."""
        return {key: value for key, value in plain(asdict(self)).items() if value or key in ("images", "clean")}


@dataclass(frozen=True, eq=False)
class Probe:
    """Networks, and the images on which their robustness is measured.

    Args:
        panel: the networks.
        images: a split.
        rows: ``(N,)`` indices of the images of the split to use.
        mean, std: mean and standard deviation of every channel of the training images, 255 = 1.
        device: the device of the networks.
        precision: an autocast context for corruptions. Attacks compute in float32, so that gradients do not underflow.
        progress: called as progress(stage, done, total).
    """

    panel: Panel
    images: ImageSet
    rows: Tensor
    mean: Sequence[float]
    std: Sequence[float]
    device: Device = "cpu"
    precision: AbstractContextManager[Any] | None = None
    progress: Progress | None = None

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield the first index, the rows, the pixels on the CPU, and the labels on the device, of each batch."""
        done = 0
        for rows in torch.split(self.rows, _BATCH):
            yield done, rows, self.images.fetch(rows).cpu(), self.images.labels[rows].to(self.device)
            done += len(rows)

    def counter(self, stage: str, passes: int = 1) -> Callable[[int], None]:
        """A function to call with the number of images after each pass over a batch, for ``passes`` over all images."""
        total, done = passes * len(self.rows), 0

        def count(images: int) -> None:
            nonlocal done
            done += images
            if self.progress:
                self.progress(stage, done, total)

        count(0)
        return count

    def prepared(self, pixels: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 -> normalised input of the networks."""
        return normalise(pixels.to(self.device), self.mean, self.std)

    def right(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """``(R,)``: the number of correct predictions of each network."""
        with self.precision or nullcontext():
            votes = self.panel.votes(self.prepared(pixels))
        return (votes == labels).sum(1).cpu()

    def shares(self, right: Tensor) -> dict[str, float]:
        """Convert counts ``(R,)`` to accuracies by name."""
        pairs = zip(self.panel.names, right.tolist(), strict=True)
        return {name: count / len(self.rows) for name, count in pairs}


def clean(probe: Probe) -> dict[str, float]:
    """Measure the accuracies on the unchanged images."""
    right = torch.zeros(len(probe.panel.names), dtype=torch.int64)
    with evaluating(*probe.panel.modules):
        count = probe.counter("clean images")
        for _, _, pixels, labels in probe.batches():
            right += probe.right(pixels, labels)
            count(len(labels))
    return probe.shares(right)


def corruptions(probe: Probe, files: CifarC | None = None, seed: int = 0) -> Corrupted:
    """Measure the accuracies under fifteen corruptions in five severities each, and their mean.

    Args:
        probe: the networks and images.
        files: the official corrupted images, to use instead of corrupting the images of ``probe``.
        seed: seed of the random draws.
    """
    right = {kind: torch.zeros(len(SEVERITIES), len(probe.panel.names), dtype=torch.int64) for kind in CORRUPTIONS}
    with evaluating(*probe.panel.modules):
        count = probe.counter("corruptions", len(CORRUPTIONS) * len(SEVERITIES))
        for first, rows, pixels, labels in probe.batches():
            for kind, counts in right.items():
                for place, severity in enumerate(SEVERITIES):
                    if files is None:
                        changed = corrupt(pixels, kind, severity, seed=seed, first=first)
                    else:
                        changed = conform(files.images(kind, severity, rows), probe.images.size, probe.images.channels)
                    counts[place] += probe.right(changed, labels)
                    count(len(labels))
    kinds = {
        kind: {
            name: tuple(count / len(probe.rows) for count in column)
            for name, column in zip(probe.panel.names, counts.T.tolist(), strict=True)
        }
        for kind, counts in right.items()
    }
    cells = len(CORRUPTIONS) * len(SEVERITIES)
    mean = {name: sum(sum(kind[name]) for kind in kinds.values()) / cells for name in probe.panel.names}
    return Corrupted("metamixer" if files is None else "files", kinds, mean)


def under_attack(probe: Probe, attacks: Mapping[str, Attack] | None = None) -> dict[str, UnderAttack]:
    """Measure the accuracies when each network is attacked by its own gradient; the ensemble by that of its mean."""
    chosen = ATTACKS if attacks is None else attacks
    pixels_range = Pixels.of(probe.mean, probe.std)
    right = {name: torch.zeros(len(probe.panel.names), dtype=torch.int64) for name in chosen}
    with evaluating(*probe.panel.modules):
        count = probe.counter("attacks", len(chosen) * len(probe.panel.names))
        for _, _, pixels, labels in probe.batches():
            images = probe.prepared(pixels)
            for name, attack in chosen.items():
                for row in range(len(probe.panel.names)):
                    network = probe.panel.network(row)
                    changed = attacked(network, images, labels, pixels_range, attack)
                    with torch.no_grad():
                        right[name][row] += int((network(changed).argmax(1) == labels).sum())
                    count(len(labels))
    return {name: UnderAttack(chosen[name].eps, probe.shares(counts)) for name, counts in right.items()}


def probe_all(probe: Probe, wanted: Collection[str], files: CifarC | None = None, seed: int = 0) -> Robustness | None:
    """Measure the requested accuracies under corruptions and attacks; None if there are no requests.

    Args:
        probe: the networks and images.
        wanted: ``corruptions`` and names of attacks.
        files: the official corrupted images; corruptions are then always measured.
        seed: seed of the corruptions.
    """
    attacks = {name: attack for name, attack in ATTACKS.items() if name in wanted}
    corrupted = "corruptions" in wanted or files is not None
    if not attacks and not corrupted:
        return None
    return Robustness(
        images=len(probe.rows),
        clean=clean(probe),
        corruptions=corruptions(probe, files, seed) if corrupted else None,
        attacks=under_attack(probe, attacks) if attacks else {},
    )
