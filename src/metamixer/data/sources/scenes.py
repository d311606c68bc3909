"""Scenes: a localization benchmark with known boxes, made from any set of small images.

Every scene shows one image of the source, at a random position and scale, on a plain background with scrambled pieces
of images of other classes. A network learns from the label only; the box says where the object is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from metamixer.core.progress import watched
from metamixer.data.errors import DataError
from metamixer.data.image_set import ImageSet, TensorImages, pair, statistics
from metamixer.data.sources.scene_rendering import LARGEST, Canvas, draw
from metamixer.data.splits import Data

PREFIX = "scenes:"
DARK = 16
CHUNK = 256


def make_scenes(source: Data, image_size: int | Sequence[int] | None, limit_bytes: int) -> Data:
    """The splits of ``source`` as scenes, each made only from images of its split.

    The seed of a scene is the name of its split and the index of its image, so that test scenes do not depend on the
    seed of the validation split or on ``train_limit``.

    If the images have a dark background (more than half of the pixels on the borders of training images are below 16 of
    255), it is transparent: a pixel is opaque from a brightness of 32, and partly transparent below. The box is then
    the tight box of the pixels that are at least half opaque. Other images are pasted as squares, which are the boxes.

    Args:
        source: a set of square images.
        image_size: side of a scene; None: twice the side of the images.
        limit_bytes: the largest memory for scenes, which are kept in memory.

    Raises:
        DataError: images are not square or too small, or the scene is too small for them or takes too much memory.
    """
    side, width = source.size
    size = pair(2 * side if image_size is None else image_size)
    least = int(LARGEST * side)
    if side != width or size[0] != size[1]:
        raise DataError(f"{source.name}: images of {side}x{width} in scenes of {size[0]}x{size[1]}; expected squares")
    if side < 8:
        raise DataError(f"{source.name}: images of {side}x{side} pixels are too small for scenes; expected 8 or more")
    if size[0] < least:
        raise DataError(f"image_size={size[0]} is too small for images of {side}x{side}; expected {least} or more")
    parts: dict[str, ImageSet] = {"train": source.train}
    parts |= {part: images for part, images in (("val", source.val), ("test", source.test)) if images is not None}
    needed = sum(map(len, parts.values())) * source.channels * size[0] ** 2
    if needed > limit_bytes:
        raise DataError(
            f"scenes of {source.name} would take {needed / 2**30:.1f} GiB, {limit_bytes / 2**30:.1f} are allowed; "
            f"expected a smaller image_size or train_limit"
        )
    canvas = Canvas(size[0], _dark(source.train))
    drawn = {part: _scenes(images, canvas, part) for part, images in parts.items()}
    mean, std = statistics(drawn["train"][0].images)
    return replace(
        source,
        name=PREFIX + source.name,
        train=drawn["train"][0],
        val=drawn["val"][0] if "val" in drawn else None,
        test=drawn["test"][0] if "test" in drawn else None,
        mean=mean,
        std=std,
        notes=(*source.notes, f"every image is a scene of {size[0]}x{size[0]} with one object, whose box is known"),
        boxes={part: boxes for part, (_, boxes) in drawn.items()},
    )


def _dark(images: ImageSet) -> bool:
    chosen = torch.linspace(0, len(images) - 1, min(1000, len(images))).long()
    brightest = images.fetch(chosen).amax(1)
    edges = torch.cat([brightest[:, 0], brightest[:, -1], brightest[:, :, 0], brightest[:, :, -1]])
    return bool((edges < DARK).double().mean() > 0.5)


def _scenes(images: ImageSet, canvas: Canvas, part: str) -> tuple[TensorImages, Tensor]:
    everything = torch.arange(len(images))
    pixels = images.images if isinstance(images, TensorImages) else images.fetch(everything)
    scenes = torch.empty(len(images), images.channels, canvas.side, canvas.side, dtype=torch.uint8)
    boxes = torch.empty(len(images), 4)
    for rows in watched(torch.split(everything, CHUNK), f"drawing scenes for {part}"):
        scenes[rows], boxes[rows] = draw(pixels, images.labels, rows, canvas, part)
    return TensorImages(scenes, images.labels, images.classes), boxes
