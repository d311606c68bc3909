"""The channel axis of a stage output: axis 1 in convolutional networks, the last axis in transformers.

Losses and activation maps use these functions, so they handle all networks in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metamixer.core.eval_mode import evaluating

_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
_FIRST = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_FIRST_BY_NAME = ("1d", "2d", "3d")  # timm's and torchvision's LayerNorm2d is a LayerNorm over axis 1
_WIDTHS = ("out_features", "out_channels", "num_features", "num_channels", "embed_dim", "embedding_dim", "hidden_size")


class Layout(NamedTuple):
    """The layout of a stage output ``(B, ...)``.

    Args:
        channels: the channel axis: 1, or the last one.
        prefix: the number of tokens without a position, such as a class token, that precede those of the image,
            according to the network.
    """

    channels: int = 1
    prefix: int = 0


def stage_layouts(network: nn.Module, images: Tensor, paths: Sequence[str]) -> tuple[Layout, ...]:
    """The layouts of the outputs of the modules ``paths``, found by one forward pass in evaluation mode.

    The last layer whose output has the shape of the stage output decides: convolutions and batch norms have their
    channels on axis 1, linear layers and layer norms on the last axis. If no layer has that shape, the number of
    channels of the last layer that fits exactly one axis decides, then timm's ``output_fmt``; otherwise it is axis 1.

    Args:
        network: its modes, statistics and hooks are unchanged afterwards.
        images: ``(B, C, ...)``; only the first one is used.
        paths: modules whose output is a tensor, or a tuple that begins with one.
    """
    layers: list[tuple[int, int | None, tuple[int, ...]]] = []
    found: dict[str, Layout] = {}
    prefix = _prefix(network)

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if (shape := _shape(output)) and len(shape) > 1:
            layers.append((_preferred(module), _width(module), shape))

    def end(path: str, output: Any) -> None:
        shape = _shape(output)
        last = _channels(shape, layers, str(getattr(network, "output_fmt", "")))
        found[path] = Layout(last, prefix if len(shape) == 3 and last == 2 else 0)

    handles = [each.register_forward_hook(note) for each in network.modules() if isinstance(each, _LAST + _FIRST)]
    for path in paths:
        module = network.get_submodule(path)
        handles.append(module.register_forward_hook(lambda _, __, output, path=path: end(path, output)))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(network):
            network(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found.get(path, Layout()) for path in paths)


def channels_first(features: Tensor, layout: Layout, image: Sequence[int] = ()) -> Tensor:
    """A stage output as ``(B, C, ...)``; image tokens are arranged on the grid of the image.

    Args:
        features: ``(B, ...)`` in the given layout.
        layout: from :func:`stage_layouts`.
        image: ``(H, W)`` of the images. Tokens ``(B, N, C)`` become ``(B, C, h, w)`` with h : w = H : W, without prefix
            tokens: as many as the network states, or else up to two. If no grid fits, they become ``(B, C, N)``.

    >>> channels_first(torch.zeros(2, 17, 8), Layout(channels=2), image=(32, 32)).shape  # a class token, 4 x 4 patches
    torch.Size([2, 8, 4, 4])
    """
    if features.ndim < 3 or layout.channels == 1:
        return features
    moved = features.movedim(layout.channels, 1)
    if moved.ndim != 3:
        return moved
    for prefix in (layout.prefix, 0, 1, 2):  # the number that a network states may hold for its last blocks only
        if grid := _grid(moved.shape[2] - prefix, image):
            return moved[:, :, prefix:].reshape(len(moved), -1, *grid)
    return moved


def _shape(output: Any) -> tuple[int, ...]:
    first = output[0] if isinstance(output, tuple) and output else output
    return tuple(first.shape) if isinstance(first, Tensor) else ()


def _preferred(module: nn.Module) -> int:
    first = isinstance(module, _FIRST) or type(module).__name__.lower().endswith(_FIRST_BY_NAME)
    return 1 if first else -1


def _width(module: nn.Module) -> int | None:
    if shape := getattr(module, "normalized_shape", None):
        return int(shape[-1])
    return next((int(getattr(module, name)) for name in _WIDTHS if hasattr(module, name)), None)


def _channels(shape: tuple[int, ...], layers: Sequence[tuple[int, int | None, tuple[int, ...]]], stated: str) -> int:
    """The channel axis, derived from the outputs of the layers so far, the latest first."""
    last = len(shape) - 1
    if last < 2:
        return 1
    for axis, width, put_out in reversed(layers):
        if put_out == shape:
            axis = axis % len(shape)
            # A norm over another axis than is usual for its type: its width says which.
            return axis if width in (None, shape[axis]) or width not in (shape[1], shape[last]) else last + 1 - axis
    for _, width, _ in reversed(layers):
        if width is not None and (shape[1] == width) != (shape[last] == width):
            return 1 if shape[1] == width else last
    return last if stated.endswith(("NHWC", "NLC")) else 1


def _prefix(network: nn.Module) -> int:
    """The number of prefix tokens that a timm network states."""
    stated = [getattr(module, "num_prefix_tokens", None) for module in network.modules()]
    return next((count for count in stated if isinstance(count, int)), 0)


def _grid(count: int, image: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns of ``count`` positions in the proportions of the image; None if there is no such grid."""
    if len(image) != 2 or count < 1:
        return None
    height, width = image
    rows = round(math.sqrt(count * height / width))
    columns = count // rows if rows else 0
    return (rows, columns) if rows * columns == count and rows * width == columns * height else None
