"""Find duplicate images: equal pixels, or recompressed and resized copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NEAR = 10
"""The number of bits, of 128, in which the hashes of copies may differ; see docs/data.md for measured rates."""
_ROWS = 256


@dataclass(frozen=True)
class Fingerprint:
    """Hashes of an image to find copies: of its pixels, and of its appearance (``look``, None for blank images)."""

    pixels: bytes
    look: NDArray[np.float32] | None


def fingerprint(pixels: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of an image, ``(C, H, W)`` uint8 in full resolution.

    The look is the difference hash of N. Krawetz ("Kind of Like That", 2013) along both axes: 128 bits that say where a
    small grey copy gets brighter to the right and downwards. Unless there are 3 channels, it is computed from their
    mean.
    """
    digest = blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).digest()
    colour = len(pixels) == 3
    grey = pixels[0] if len(pixels) == 1 else pixels.mean(0).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)) if colour else grey)
    if is_blank(pixels):
        return Fingerprint(digest, None)
    small = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BILINEAR), dtype=np.int16)
    bits = np.concatenate([(np.diff(small, axis=axis) > 0)[:8, :8].ravel() for axis in (0, 1)])
    return Fingerprint(digest, np.where(bits, 1, -1).astype(np.float32))


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Whether nearly all pixels have the same value: 99 % of the values within 8 of the median of their channel."""
    flat = pixels.reshape(len(pixels), -1).astype(np.int16)
    return bool((np.abs(flat - np.median(flat, axis=1, keepdims=True)) <= 8).mean() >= 0.99)


@dataclass(frozen=True)
class Copy:
    """Two images, by their indices, that are equal or look equal."""

    first: int
    second: int
    kind: Literal["same pixels", "same look"]


def copies(prints: Sequence[Fingerprint | None]) -> list[Copy]:
    """All images that are copies of an earlier one, each with the first image that it is a copy of."""
    found: list[Copy] = []
    seen: dict[bytes, int] = {}
    looks: list[int] = []
    for number, one in enumerate(prints):
        if one is None:
            continue
        if (first := seen.setdefault(one.pixels, number)) != number:
            found.append(Copy(first, number, "same pixels"))
        elif one.look is not None:
            looks.append(number)
    found += [Copy(looks[a], looks[b], "same look") for a, b in _near(prints, looks)]
    return sorted(found, key=lambda copy: (copy.second, copy.first))


def _near(prints: Sequence[Fingerprint | None], looks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of positions in ``looks``: the first earlier one within :data:`NEAR` bits, and the position itself."""
    if not looks:
        return
    signs = np.stack([one.look for number in looks if (one := prints[number]) is not None and one.look is not None])
    for start in range(0, len(signs), _ROWS):
        part = signs[start : start + _ROWS]
        apart = (signs.shape[1] - part @ signs[: start + len(part)].T) / 2
        for row in range(len(part)):
            near = np.flatnonzero(apart[row, : start + row] <= NEAR)
            if len(near):
                yield int(near[0]), start + row
