"""Render scenes: small images at random positions on a plain background with distractors.

All arithmetic is exact: every pixel is a sum of products of integers, in float64 for matrix products, and such sums do
not depend on their order. A scene is therefore identical on every machine and in a batch of any size, which
``F.interpolate`` and ``torch.randn`` do not guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from metamixer.core.seeding import generator

SMALLEST, LARGEST = 0.6, 1.2
"""The range of the side of an object, relative to the side of its image."""
DISTRACTORS = 3
TRIES = 8
"""Number of positions drawn for a distractor; the one that covers least of the box of the object is used."""
VISIBLE = 32
"""Brightness from which a pixel of an image with a dark background is opaque; at half of it, it counts as visible."""
_ONE = 2**11  # the sum of the weights in a row of `_weights`
_GRIDS = ((2, 16), (5, 14), (14, 10))  # of the background: cells per side, and the largest amplitude in grey levels
_NUMBERS = 3 + len(_GRIDS) + DISTRACTORS * (2 + 33 + 2 * TRIES)  # random numbers per image, besides those of pixels


@dataclass(frozen=True)
class Canvas:
    """The appearance of the scenes of a set.

    Args:
        side: side of a scene in pixels.
        dark: whether images have a dark background, which is then transparent; otherwise squares are pasted.
    """

    side: int
    dark: bool

    @property
    def levels(self) -> tuple[int, int]:
        """The darkest and brightest mean grey level of a background."""
        return (24, 96) if self.dark else (56, 200)


def draw(images: Tensor, labels: Tensor, rows: Tensor, canvas: Canvas, part: str) -> tuple[Tensor, Tensor]:
    """Draw the scenes of the images ``rows``.

    Args:
        images: ``(N, C, s, s)`` uint8, a complete split, from which distractors are taken as well.
        labels: ``(N,)`` int64.
        rows: ``(n,)`` int64.
        canvas: appearance of the scenes.
        part: name of the split; it and the row of the image are the seed of a scene.

    Returns:
        Scenes ``(n, C, S, S)`` uint8 and boxes ``(n, 4)`` float32, ``(x0, y0, x1, y1)`` in pixels, ends exclusive.
    """
    channels, side = images.shape[1], images.shape[2]
    cells = sum(grid * grid for grid, _ in _GRIDS)
    total = _NUMBERS + channels * (1 + cells) + canvas.side**2
    noise = torch.stack(
        [torch.randint(2**16, (total,), generator=generator(0, "scene", part, row)) for row in rows.tolist()]
    )
    drawn, noise = torch.split(noise, [_NUMBERS, total - _NUMBERS], dim=1)
    numbers = iter(drawn.unbind(1))
    scenes = _background(noise, [next(numbers) for _ in _GRIDS], channels, canvas)
    sides = _between(next(numbers), round(SMALLEST * side), int(LARGEST * side))
    top, left = (_between(next(numbers), torch.zeros_like(sides), canvas.side - sides) for _ in range(2))
    boxes = torch.stack([left, top, left + sides, top + sides], 1)
    objects = []
    for length in torch.unique(sides).tolist():
        chosen = (sides == length).nonzero().flatten()
        pixels = resized(images[rows[chosen]], length)
        cover = _cover(pixels, canvas)
        boxes[chosen] = _tight(cover, left[chosen], top[chosen])
        objects.append((chosen, pixels, cover))
    for _ in range(DISTRACTORS):
        others = _others(labels, rows, next(numbers), next(numbers))
        pixels, cover = _scrambled(images[others].long(), canvas, [next(numbers) for _ in range(33)])
        spots = torch.stack([next(numbers) for _ in range(2 * TRIES)], 1)
        spots = _between(spots, 0, canvas.side - pixels.shape[-1]).view(-1, TRIES, 2)
        best = _shared(spots, pixels.shape[-1], boxes).argmin(1)
        spot = spots[torch.arange(len(spots)), best]
        _paste(scenes, torch.arange(len(rows)), pixels, cover, spot[:, 1], spot[:, 0])
    for chosen, pixels, cover in objects:  # last, so that nothing covers them
        _paste(scenes, chosen, pixels, cover, top[chosen], left[chosen])
    return scenes.byte(), boxes.float()


def resized(images: Tensor, side: int) -> Tensor:
    """Resize exactly, bilinear and antialiased: ``(n, C, s, s)`` uint8 -> ``(n, C, side, side)`` int64.

    >>> resized(torch.full((1, 1, 28, 28), 77, dtype=torch.uint8), 20).unique()
    tensor([77])
    """
    weights = _weights(images.shape[-1], side)
    return ((weights @ images.double() @ weights.T).long() + _ONE**2 // 2) // _ONE**2


@cache
def _weights(old: int, new: int) -> Tensor:
    """``(new, old)``: rows of integers with the sum ``_ONE``."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * scale - 0.5
    near = (1 - (torch.arange(old, dtype=torch.float64) - centres[:, None]).abs() / reach).clamp_min(0)
    whole = (near / near.sum(1, keepdim=True) * _ONE).round()
    whole[torch.arange(new), whole.argmax(1)] += _ONE - whole.sum(1)
    return whole


def _between(number: Tensor, low: int | Tensor, high: int | Tensor) -> Tensor:
    """Map a 16-bit number to the range from ``low`` to ``high``, both included."""
    return low + (number * (high - low + 1) >> 16)


def _background(noise: Tensor, swings: list[Tensor], channels: int, canvas: Canvas) -> Tensor:
    """A grey level, waves of three lengths and grain: ``(n, C * (1 + cells) + S * S)`` -> ``(n, C, S, S)`` int64."""
    n, side = len(noise), canvas.side
    tints, *grids, grain = torch.split(noise, [channels, *(channels * g * g for g, _ in _GRIDS), side * side], dim=1)
    level = _between(tints[:, :1], *canvas.levels) + _between(tints, -12, 12)
    waves = level.view(n, channels, 1, 1) + _between(grain, -5, 5).view(n, 1, side, side)
    for (cells, most), swing, grid in zip(_GRIDS, swings, grids, strict=True):
        values = _between(grid, 0, 255).view(n, channels, cells, cells)
        height = _between(swing, 2, most).view(n, 1, 1, 1)
        waves += (resized(values, side) - 128) * height // 128
    return waves.clamp(0, 255)


def _cover(pixels: Tensor, canvas: Canvas) -> Tensor:
    """The opacity of pixels, from 0 to ``VISIBLE``: ``(n, C, h, w)`` -> ``(n, 1, h, w)``."""
    brightest = pixels.amax(1, keepdim=True)
    return brightest.clamp_max(VISIBLE) if canvas.dark else torch.full_like(brightest, VISIBLE)


def _tight(cover: Tensor, left: Tensor, top: Tensor) -> Tensor:
    """The tight boxes of the visible pixels, or of the whole piece if none is visible."""
    seen = cover[:, 0] >= VISIBLE // 2
    seen |= ~seen.any(2).any(1)[:, None, None]
    ends = []
    for axis, start in ((1, left), (2, top)):
        there = seen.any(axis).int()
        ends += [(start + there.argmax(1), start + there.shape[1] - there.flip(1).argmax(1))]
    return torch.stack([ends[0][0], ends[1][0], ends[0][1], ends[1][1]], 1)


def _others(labels: Tensor, rows: Tensor, *numbers: Tensor) -> Tensor:
    """For each row a random image of another class; any image if there is only one class."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    after = counts.cumsum(0)[labels[rows]]
    rest = len(labels) - counts[labels[rows]]
    rest = torch.where(rest > 0, rest, len(labels))
    step = (numbers[0] * 2**16 + numbers[1]) * rest >> 32
    return order[(after + step) % len(labels)]


def _scrambled(images: Tensor, canvas: Canvas, numbers: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Nine (or four) of the sixteen blocks of an image in random order: pixels and cover of 3 x 3 blocks."""
    n, channels, side, _ = images.shape
    block = side // 4
    blocks = images[..., : 4 * block, : 4 * block].view(n, channels, 4, block, 4, block)
    blocks = blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, 16, channels, block, block)
    lots = torch.stack(numbers[:16], 1)
    if canvas.dark:  # blocks of the background would not distract
        lots = lots + (_cover(blocks.flatten(0, 1), canvas).view(n, 16, -1).sum(2) << 16)
    chosen = lots.argsort(dim=1, stable=True, descending=True)[:, :9]
    order = torch.stack(numbers[16:25], 1)
    few = (numbers[32] >> 15).bool()  # half of the pieces keep four blocks only, at 0, 1, 3 and 4
    order = torch.where(few[:, None] & (torch.arange(9) >= 4), order + 2**16, order)
    places = order.argsort(dim=1, stable=True)
    seats = torch.tensor([0, 1, 3, 4, 2, 5, 6, 7, 8]).argsort()
    pieces = blocks[torch.arange(n)[:, None], chosen.gather(1, places[:, seats])]
    pixels = pieces.view(n, 3, 3, channels, block, block).permute(0, 3, 1, 4, 2, 5)
    pixels = pixels.reshape(n, channels, 3 * block, 3 * block)
    cover = _cover(pixels, canvas)
    outside = torch.arange(3 * block) >= 2 * block
    cover = cover.masked_fill(few[:, None, None, None] & (outside | outside[:, None]), 0)
    return pixels, cover


def _shared(spots: Tensor, side: int, boxes: Tensor) -> Tensor:
    """Pixels in the overlap of squares and box: ``(n, TRIES, 2)`` left and top, ``(n, 4)`` -> ``(n, TRIES)``."""
    low = torch.maximum(spots, boxes[:, None, :2])
    high = torch.minimum(spots + side, boxes[:, None, 2:])
    return (high - low).clamp_min(0).prod(2)


def _paste(scenes: Tensor, chosen: Tensor, pixels: Tensor, cover: Tensor, top: Tensor, left: Tensor) -> None:
    """Paste pieces ``(m, C, h, w)`` into the scenes ``chosen``, each at its own position."""
    y = (top[:, None] + torch.arange(pixels.shape[2]))[:, None, :, None]
    x = (left[:, None] + torch.arange(pixels.shape[3]))[:, None, None, :]
    place = (chosen[:, None, None, None], torch.arange(scenes.shape[1])[:, None, None], y, x)
    under = scenes[place]
    scenes[place] = under + ((pixels - under) * cover + VISIBLE // 2) // VISIBLE
