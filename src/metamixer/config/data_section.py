"""The recipe's ``data`` section: which images, and how they are read."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from metamixer.core.standard_sets import STANDARD
from metamixer.data.augment import Augment
from metamixer.data.policies import Changes, Policy
from metamixer.data.random_crop import RandomCrop


class Section(BaseModel):
    """A section of a recipe: frozen; unknown settings are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def later(neutral: Any, **limits: Any) -> Any:
    """A setting that came after the first version: at its default it is not in the recipe's checksum."""
    plain = list(neutral) if isinstance(neutral, tuple) else neutral
    return Field(neutral, json_schema_extra={"neutral": plain}, **limits)


class DataSection(Section):
    """The images to train on.

    Args:
        name: ``fashion-mini``, a standard set (``cifar10``, ...), ``hf:NAME``, ``wds:PATTERN`` (tar shards), or the
            path of a folder of images or of parquet or arrow files.
        root: folder of the standard sets; ``download`` writes to it.
        download: download a standard set that is missing.
        val_share: share of the training images to hold out for validation if the set has no validation split.
        seed: seed of that split, of the images that ``train_limit`` keeps, and of wrong labels.
        image_size: side in pixels that images are resized to, or HEIGHTxWIDTH such as 64x48; None: 224 for photographs;
            small images that all have one size keep it.
        channels: 1 (grey), 3 (colour), or more, which TIFF and ``.npy`` files may have; None: those of the images.
        on_error: ``stop`` at an unreadable file, or ``skip`` and count such files.
        train_limit: largest number of training images per class, for studies with little data; None: all.
        label_noise: share of training labels that are made wrong, for studies of noisy labels.
        label_noise_kind: ``symmetric`` (any other class) or ``asymmetric`` (one fixed other class, similar if known).
        pad: pixels of zero padding before the random crop; None: an eighth of the side, 4 for CIFAR.
        flip: random horizontal flips; None: on if mirrored images of the set keep their class.
        workers: number of processes that decode images on disk and augment images one by one.
        layout: layout of a folder of images: ``auto`` recognizes splits by name, ``classes`` treats each folder as a
            class.
        image_column: column of the images in ``hf:`` sets and parquet files, or the file ending of images in tar
            shards; None: the only one that fits.
        label_column: column of the classes, as names or numbers, or a field of ``.json`` in tar shards; None: the only
            column that fits, ``.cls`` in tar shards.
        labels: for a folder of images, a CSV file in it with the columns ``file`` and ``label`` and, optionally,
            ``split``; or a list of such files, each named after its split.
        labels_column: column of ``labels`` with the classes.
        sampler: ``shuffle`` (every training image once in an epoch) or ``balanced`` (the same number of images of each
            class, so images of small classes are repeated).
        pad_mode: content of the padding: ``zero`` (black) or ``reflect`` (the image mirrored at its edge).
        augment: augmentation of each training image: ``none``, ``light`` (shift and flip), or in addition ``trivial``
            (TrivialAugment), ``rand`` (RandAugment), ``augmix`` (AugMix) or ``auto`` (AutoAugment with ImageNet's
            policy; ``auto-cifar10`` and ``auto-svhn`` for the others).
        augment_magnitude: strength of ``rand``, 0 to 30 (None: 9), or of ``augmix``, 1 to 10 (None: 3).
        augment_ops: operations for each image of ``rand`` (None: 2), or chains that ``augmix`` mixes (None: 3).
        crop_scale: [least, largest] share of the area that a random crop of each training image covers, such as
            [0.35, 1], instead of the shift; None: no crop. Files are decoded in each epoch, so that crops are taken
            from the full image.
        crop_ratio: [least, largest] width : height of that crop.
        color_jitter: largest relative change of brightness, contrast and saturation, such as 0.4; or a list of these
            three and the hue (at most 0.5).
        erasing: probability that a random box of a training image is made black.
        fit: how an image is brought to other proportions: ``crop`` keeps the largest centred part, ``letterbox`` keeps
            all of it and adds grey bars, ``squash`` keeps all of it and changes its proportions.
        white: value of white in 16-bit files, such as 4095 for 12-bit cameras.
        bits: 8, or 16 to keep the precision of 16-bit files; images then take four times the memory.
        cache: where to store decoded images that do not stay in memory, so that later epochs and runs need not decode
            them again: a folder, ``auto`` (the system's folder for caches), or ``off``.
        cache_size: shorter side of images that are stored for random crops (``crop_scale``); None: 8/7 of the longer
            side of the network's images, 256 for 224.
        buffer: number of images of shards (``wds:``, ``stream``) that are shuffled together; two buffers of remote
            images are held in memory.
        stream: read the parquet files or tar shards of ``hf:NAME`` in place, instead of copying the set.
    """

    name: str = "fashion-mini"
    root: str = "data"
    download: bool = False
    val_share: float = Field(0.1, ge=0, lt=1)
    seed: int = 0
    image_size: Annotated[int, Field(ge=1)] | str | None = None
    channels: Annotated[int, Field(ge=1)] | None = None
    on_error: Literal["stop", "skip"] = "stop"
    train_limit: int | None = Field(None, ge=1)
    label_noise: float = Field(0.0, ge=0, le=1)
    label_noise_kind: Literal["symmetric", "asymmetric"] = "symmetric"
    pad: int | None = Field(None, ge=0)
    flip: bool | None = None
    workers: int = Field(0, ge=0)
    layout: Literal["auto", "classes"] = later("auto")
    image_column: str | None = later(None)
    label_column: str | None = later(None)
    labels: str | list[str] | None = later(None)
    labels_column: str = later("label")
    sampler: Literal["shuffle", "balanced"] = later("shuffle")
    pad_mode: Literal["zero", "reflect"] = later("zero")
    augment: Policy = later("light")
    augment_magnitude: int | None = later(None)
    augment_ops: int | None = later(None)
    crop_scale: tuple[float, float] | None = later(None)
    crop_ratio: tuple[float, float] = later((3 / 4, 4 / 3))
    color_jitter: float | tuple[float, float, float] | tuple[float, float, float, float] = later(0.0)
    erasing: float = later(0.0)
    fit: Literal["crop", "letterbox", "squash"] = later("crop")
    white: int = later(65535, ge=1, le=65535)
    bits: Literal[8, 16] = later(8)
    cache: str = later("off")
    cache_size: int | None = later(None, ge=1)
    buffer: int = later(4096, ge=1)
    stream: bool = later(False)

    @field_validator("image_size")
    @classmethod
    def _sides(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, str) and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", value):
            raise ValueError(f"{value!r}; a side such as 64, or HEIGHTxWIDTH such as 64x48, is accepted")
        return value

    @model_validator(mode="after")
    def _augmentation(self) -> DataSection:
        self.augmentation(pad=0, flip=False)
        return self

    def augmentation(self, pad: int, flip: bool) -> Augment:
        """The augmentation of training images.

        Args:
            pad, flip: values of the data, used if the section does not set them.

        Raises:
            DataError: settings that do not go together.
        """
        crop = None if self.crop_scale is None else RandomCrop(self.crop_scale, self.crop_ratio)
        if self.augment == "none":
            pad, flip = 0, False
        jitter = self.color_jitter if isinstance(self.color_jitter, tuple) else (self.color_jitter,) * 3
        return Augment(
            (0 if crop else pad) if self.pad is None else self.pad,
            flip if self.flip is None else self.flip,
            self.pad_mode,
            crop,
            Changes(self.augment, self.augment_magnitude, self.augment_ops, (*jitter, 0.0)[:4], self.erasing),
        )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that images are resized to."""
        if self.image_size is None or isinstance(self.image_size, int):
            return None if self.image_size is None else (self.image_size, self.image_size)
        height, _, width = self.image_size.partition("x")
        return int(height), int(width)

    @field_validator("cache")
    @classmethod
    def _cache(cls, value: str) -> str:
        """A folder is the same one in any working directory."""
        if not value.strip("\0"):
            raise ValueError(f"{value!r}; a folder, auto or off is accepted")
        return value if value in ("auto", "off") else os.path.abspath(os.path.expanduser(value))

    @field_validator("name", "root", "cache")
    @classmethod
    def _path(cls, value: str) -> str:
        if "\0" in value:
            raise ValueError(f"{value!r} is the name of no file")
        return value


_KINDS = ("scenes:", "hf:", "wds:")


def without_kind(name: str) -> tuple[str, str]:
    """A name of data in two: what stands before it, such as ``scenes:``, and the set itself."""
    kind, rest = "", name
    while found := next((one for one in _KINDS if rest.startswith(one)), ""):
        kind, rest = kind + found, rest.removeprefix(found)
    return kind, rest


def is_place(name: str) -> bool:
    """Whether data are named by a path: ``photos``, ``hf:./saved``, unlike ``cifar10``, ``hf:me/set`` and URLs."""
    kind, rest = without_kind(name)
    if "wds:" in kind:
        return "://" not in rest
    return rest.startswith(("/", "~", ".", "\\")) if "hf:" in kind else rest not in STANDARD


def placeless(section: dict[str, Any]) -> dict[str, Any]:
    """The section without the place of its data, which does not affect results.

    The cache is left out too, unless there are random crops: those are taken from other pixels if there is a cache.
    """
    here = section | {"name": placeless_name(section["name"]), "root": "data"}
    cached = here.pop("cache", "off") != "off" and here.get("crop_scale") is not None
    size = here.pop("cache_size", None)
    return here | ({"cache": "on", "cache_size": size} if cached else {})


def placeless_name(name: str) -> str:
    """A name of data without their place: only the last part of a path is kept.

    >>> placeless_name("scenes:/home/me/photos"), placeless_name("hf:me/set"), placeless_name("wds:s3://b/{0..9}.tar")
    ('scenes:photos', 'hf:me/set', 'wds:{0..9}.tar')
    """
    kind, rest = without_kind(name)
    return kind + (Path(rest).name if is_place(name) or "wds:" in kind else rest)
