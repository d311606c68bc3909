"""Which axis of a stage's output holds the channels: 1 in convolutional networks, the last in transformers.

One place that finds it, and one that moves it, so that losses and activation maps read all networks alike.
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
    """How a stage's output ``(B, ...)`` is to be read.

    Args:
        channels: the axis of the channels: 1, or the last one.
        prefix: how many tokens of no place, such as a class token, the network says it puts before those of the image.
    """

    channels: int = 1
    prefix: int = 0


def stage_layouts(network: nn.Module, images: Tensor, paths: Sequence[str]) -> tuple[Layout, ...]:
    """The layout of what each of the modules ``paths`` puts out, found by one forward pass in evaluation mode.

    The last layer inside that put out the stage's shape decides: a convolution or a batch norm has its channels on
    axis 1, a linear layer or a layer norm on the last one. Where no layer did, the number of channels of the last layer
    that fits one axis only decides, then ``output_fmt`` of timm; without any of these it is axis 1.

    Args:
        network: keeps its modes, statistics and hooks.
        images: ``(B, C, ...)``; the first one is enough.
        paths: of modules that put out a tensor, or a tuple that begins with one.
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
    """A stage's output as ``(B, C, ...)``: of tokens those of the image, on its grid.

    Args:
        features: ``(B, ...)`` as the layout says.
        layout: from :func:`stage_layouts`.
        image: ``(H, W)`` of the images; tokens ``(B, N, C)`` become ``(B, C, h, w)`` with h : w = H : W, without those
            before them: as many as the network says, or else up to two. Where none fits, all stay in a row,
            ``(B, C, N)``.

    >>> channels_first(torch.zeros(2, 17, 8), Layout(channels=2), image=(32, 32)).shape  # a class token, 4 x 4 patches
    torch.Size([2, 8, 4, 4])
    """
    if features.ndim < 3 or layout.channels == 1:
        return features
    moved = features.movedim(layout.channels, 1)
    if moved.ndim != 3:
        return moved
    for prefix in (layout.prefix, 0, 1, 2):  # what a network says may hold for its last blocks alone
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
    """The axis of the channels, from what the layers so far put out, the last of them first."""
    last = len(shape) - 1
    if last < 2:
        return 1
    for axis, width, put_out in reversed(layers):
        if put_out == shape:
            axis = axis % len(shape)
            # A norm over another axis than its kind usually has: its width says which.
            return axis if width in (None, shape[axis]) or width not in (shape[1], shape[last]) else last + 1 - axis
    for _, width, _ in reversed(layers):
        if width is not None and (shape[1] == width) != (shape[last] == width):
            return 1 if shape[1] == width else last
    return last if stated.endswith(("NHWC", "NLC")) else 1


def _prefix(network: nn.Module) -> int:
    """How many tokens a network of timm says it puts before those of the image."""
    stated = [getattr(module, "num_prefix_tokens", None) for module in network.modules()]
    return next((count for count in stated if isinstance(count, int)), 0)


def _grid(count: int, image: Sequence[int]) -> tuple[int, int] | None:
    """``count`` places as rows and columns in the image's proportions; None where there are no such."""
    if len(image) != 2 or count < 1:
        return None
    height, width = image
    rows = round(math.sqrt(count * height / width))
    columns = count // rows if rows else 0
    return (rows, columns) if rows * columns == count and rows * width == columns * height else None
