"""Synthetic label noise, for studies of robustness to wrong labels."""

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
"""Which class is taken for which, found by the names of the classes. CIFAR-10's is that of Patrini et al. (arXiv
1609.03683); Fashion-MNIST's is ours, of the pairs that networks confuse most."""


def with_label_noise(data: Data, share: float, kind: Kind, seed: int) -> Data:
    """The same data with a share of the *training* labels wrong; validation and test labels stay right.

    Exactly ``round(share * n)`` of the n images of a class that can be confused are given another label, so that runs
    differ by which images are hit and not by how many. ``symmetric``: any other class, uniformly. ``asymmetric``: the
    class that theirs is taken for: ``CONFUSED`` where it knows the classes, else the next class (the last one: the
    first). Classes that are taken for none keep their labels.

    Args:
        data: as loaded.
        share: in [0, 1].
        kind: see above.
        seed: the same seed hits the same images.

    Raises:
        DataError: the share or the kind does not exist.
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
    """``(classes,)``: the class that each is confused with; itself if with none."""
    for pairs in CONFUSED.values():
        if set(pairs) | set(pairs.values()) <= set(classes):
            return torch.tensor([classes.index(pairs.get(name, name)) for name in classes])
    return (torch.arange(len(classes)) + 1) % len(classes)
