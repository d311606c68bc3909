"""Synthetic label noise, to study robustness to wrong labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from metamixer.core.seeding import generator
from metamixer.data.errors import DataError
from metamixer.data.splits import Data

Kind = Literal["symmetric", "asymmetric"]

CONFUSED: Mapping[str, Mapping[str, str]] = {
    "cifar10": {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"},
    "fashion": {
        "T-shirt/top": "Shirt",
        "Shirt": "T-shirt/top",
        "Pullover": "Coat",
        "Coat": "Pullover",
        "Sandal": "Sneaker",
        "Sneaker": "Ankle boot",
    },
}
"""The class that replaces each class in asymmetric noise, by data set, recognised by its class names. CIFAR-10 as in
Patrini et al. (arXiv 1609.03683); Fashion-MNIST (ours) has the pairs that networks confuse most."""


def with_label_noise(data: Data, share: float, kind: Kind, seed: int) -> Data:
    """The same data with a share of wrong *training* labels; validation and test labels do not change.

    Exactly ``round(share * n)`` of the n images of a class get another label, so that runs differ in the images that
    are changed but not in their number. ``symmetric``: any other class, uniformly. ``asymmetric``: the class given by
    ``CONFUSED`` if it has these classes, and the labels of its other classes do not change; otherwise the next class
    (for the last class, the first).

    Args:
        data: the loaded data.
        share: share of wrong labels, in [0, 1].
        kind: see above.
        seed: the same seed changes the same images.

    Raises:
        DataError: the share or the kind is not valid.
    """
    if not 0 <= share <= 1:
        raise DataError(f"label noise of {share}: expected a share of the training labels, in [0, 1]")
    if kind not in ("symmetric", "asymmetric"):
        raise DataError(f"label noise {kind!r}: expected symmetric or asymmetric")
    if share == 0:
        return data
    labels, draw = data.train.labels, generator(seed, "label noise")
    taken_for = _taken_for(data.classes) if kind == "asymmetric" else None
    wrong = labels.clone()
    for label in range(len(data.classes)):
        if taken_for is not None and taken_for[label] == label:
            continue
        own = (labels == label).nonzero().flatten()
        hit = own[torch.randperm(len(own), generator=draw)[: round(share * len(own))]]
        if taken_for is None:
            steps = torch.randint(1, len(data.classes), hit.shape, generator=draw)
            wrong[hit] = (label + steps) % len(data.classes)
        else:
            wrong[hit] = taken_for[label]
    changed = int((wrong != labels).sum())
    note = f"{changed} of {len(labels)} training labels made wrong ({kind} noise of {share:g}, seed {seed})"
    train = cast(Any, replace(cast(Any, data.train), labels=wrong))
    return replace(data, train=train, notes=(*data.notes, note))


def _taken_for(classes: Sequence[str]) -> Tensor:
    """``(classes,)``: the class that each class is confused with, or the class itself."""
    for pairs in CONFUSED.values():
        if set(pairs) | set(pairs.values()) <= set(classes):
            return torch.tensor([classes.index(pairs.get(name, name)) for name in classes])
    return (torch.arange(len(classes)) + 1) % len(classes)
