"""The splits of a task, as returned by :func:`metamixer.data.load`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, TypeVar

import torch
from torch import Tensor

from metamixer.core.text import counted, quoted
from metamixer.data.class_sampling import limit_per_class, split
from metamixer.data.errors import DataError
from metamixer.data.image_set import Device, ImageSet, Numbers, TensorImages, overlap, statistics

S = TypeVar("S", bound=ImageSet)
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class HoldOut(TypedDict):
    """Settings of the validation split and of the number of training images: see :func:`assemble`."""

    val_share: float
    seed: int
    train_limit: int | None


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of a task.

    Args:
        name: the name or path that was loaded.
        train: training images.
        val: validation images, to select epochs and settings. None if there are none.
        test: test images, for final results only. None if there are none.
        classes: the name of every class; its index is the label in every split.
        mean: mean of every channel of the training images, 255 = 1.
        std: standard deviation of every channel.
        mirror: whether a mirrored image still belongs to its class; False for digits and letters.
        notes: what was left out, held out or is unusual, as sentences.
        skipped: files that could not be read, with the cause; empty unless ``on_error="skip"``.
        boxes: boxes of the objects, if they are known: for each existing split (``train``, ``val``, ``test``)
            ``(N, 4)`` float32 ``(x0, y0, x1, y1)`` in pixels of the images, x1 and y1 exclusive.
    """

    name: str
    train: ImageSet
    val: ImageSet | None
    test: ImageSet | None
    classes: tuple[str, ...]
    mean: Numbers
    std: Numbers
    mirror: bool = True
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    boxes: Mapping[str, Tensor] | None = None

    @property
    def channels(self) -> int:
        """1 (grey), 3 (red, green, blue) or more."""
        return self.train.channels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.train.size

    def to(self, device: Device) -> Data:
        """The same data with the pixels on ``device``, for splits that hold pixels."""
        return replace(
            self,
            train=self.train.to(device),
            val=None if self.val is None else self.val.to(device),
            test=None if self.test is None else self.test.to(device),
        )


def without(part: str, images: ImageSet | None) -> tuple[str, ...]:
    """A note about classes of which a held-out split has no image."""
    if images is None:
        return ()
    counts = torch.bincount(images.labels, minlength=len(images.classes)).tolist()
    absent = [name for name, count in zip(images.classes, counts, strict=True) if not count]
    return (
        (f"no image for {part} of {quoted(absent)}: too few images, all are in the training split",) if absent else ()
    )


def assemble(
    name: str,
    train: S,
    val: S | None,
    test: S | None,
    *,
    val_share: float,
    seed: int,
    train_limit: int | None = None,
    mirror: bool = True,
    prepare: Callable[[Split, ImageSet], ImageSet] | None = None,
    scale: tuple[Numbers, Numbers] | None = None,
    notes: tuple[str, ...] = (),
    skipped: tuple[tuple[str, str], ...] = (),
) -> Data:
    """Hold out a validation split if there is none, limit the training split, and compute mean and deviation.

    Args:
        name: the name or path that is loaded.
        train: training images, including those for validation if ``val`` is None.
        val: a validation split, or None to hold out ``val_share`` of every class.
        test: the test split; only used to count copies.
        val_share: share of every class for validation, in [0, 1); 0 holds out nothing.
        seed: seed of the validation split and of the selection by ``train_limit``.
        train_limit: the largest number of training images per class; the validation split is not reduced.
        mirror: see :class:`Data`.
        prepare: called with the name and the images of every split before pixels are used. Images of ``val`` and
            ``test`` that are also in ``train`` are then counted.
        scale: mean and standard deviation of the training images, if they are known.
        notes: notes so far; more are appended.
        skipped: see :class:`Data`.

    Raises:
        DataError: there are fewer than two classes, or no training images.
    """
    if len(train.classes) < 2:
        raise DataError(f"{name}: {len(train.classes)} class is nothing to learn; expected two or more")
    if not len(train):
        raise DataError(f"{name}: no training images")
    found = list(notes)
    if val is None and val_share > 0:
        kept, held = split(train.labels, val_share, seed)
        if len(held):
            train, val = train.subset(kept), train.subset(held)
        found.append(f"{len(held)} of {len(kept) + len(held)} training images held out for validation")
        found += without("validation", val)
    if train_limit is not None:
        chosen = limit_per_class(train.labels, train_limit, seed)
        found.append(f"{len(chosen)} of {len(train)} training images kept: at most {train_limit} per class")
        train = train.subset(chosen)
    sets: dict[Split, ImageSet | None] = {"train": train, "val": val, "test": test}
    if prepare is not None:
        sets = {part: None if images is None else prepare(part, images) for part, images in sets.items()}
        for part, word in (("val", "validation"), ("test", "test")):
            if copies := _copies(sets["train"], sets[part]):  # type: ignore[index]
                found.append(f"{counted(copies, f'{word} image')} found, pixel for pixel, in the training images")
    shown = sets["train"] or train
    # For images on disk 512 give three digits, without reading a large folder twice.
    mean, std = scale or statistics(shown, limit=10_000 if isinstance(shown, TensorImages) else 512)
    return Data(name, shown, sets["val"], sets["test"], train.classes, mean, std, mirror, tuple(found), skipped)


def _copies(train: ImageSet | None, images: ImageSet | None) -> int:
    in_memory = isinstance(train, TensorImages) and isinstance(images, TensorImages)
    return overlap(train, images) if in_memory else 0  # type: ignore[arg-type]
