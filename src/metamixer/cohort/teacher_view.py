"""Adapt a teacher that was trained elsewhere: normalise its input as in its training, and reorder its outputs.

Both are hooks with non-persistent buffers, so that the state dict is still that of the network itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def rescale(
    network: nn.Module, ours: tuple[Sequence[float], Sequence[float]], own: tuple[Sequence[float], Sequence[float]]
) -> None:
    """Convert the input of a network from our normalisation to its own.

    The conversion commutes with mixing, because images are mixed linearly with weights that sum to 1.

    Args:
        network: takes ``(B, C, ...)`` images.
        ours: mean and standard deviation of each channel that the images were normalised with, for pixels in [0, 1].
        own: mean and standard deviation that the network was trained with.
    """
    (mean, std), (own_mean, own_std) = (
        tuple(torch.tensor(numbers, dtype=torch.float64) for numbers in pair) for pair in (ours, own)
    )
    network.register_buffer("teacher_factor", (std / own_std).float(), persistent=False)
    network.register_buffer("teacher_shift", ((mean - own_mean) / own_std).float(), persistent=False)
    network.register_forward_pre_hook(_rescaled)


def reorder(network: nn.Module, order: Sequence[int]) -> None:
    """Reorder the outputs of a network: output ``order[k]`` becomes the logit of class k."""
    network.register_buffer("teacher_order", torch.tensor(order, dtype=torch.int64), persistent=False)
    network.register_forward_hook(_reordered)


def has_view(network: nn.Module) -> bool:
    """Whether the input or the outputs of a network are adapted by :func:`rescale` or :func:`reorder`."""
    return any(name in ("teacher_factor", "teacher_order") for name, _ in network.named_buffers(recurse=False))


def _rescaled(network: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    images: Tensor = args[0]
    form = (1, -1) + (1,) * (images.ndim - 2)
    factor, shift = (buffer.to(images.dtype).view(form) for buffer in (network.teacher_factor, network.teacher_shift))
    return (images * factor + shift, *args[1:])


def _reordered(network: Any, args: Any, output: Any) -> Tensor:
    logits: Any = output["logits"] if isinstance(output, dict) else getattr(output, "logits", output)
    found: Tensor = logits.index_select(-1, network.teacher_order)
    return found
