"""What a teacher that was trained elsewhere needs: images in its own normalisation, its outputs in the order of ours.

Both are hooks with buffers that no state dict holds, so that weights and checkpoints stay those of the network itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def rescale(
    network: nn.Module, ours: tuple[Sequence[float], Sequence[float]], own: tuple[Sequence[float], Sequence[float]]
) -> None:
    """Let images that were normalised with our mean and deviation reach a network as if they were with its own.

    Mixing commutes with it: images are blended and pasted linearly, with weights that add up to 1.

    Args:
        network: gets ``(B, C, ...)`` images.
        ours: mean and standard deviation of each channel, 255 = 1.
        own: those that the network was trained with.
    """
    (mean, std), (own_mean, own_std) = (
        tuple(torch.tensor(numbers, dtype=torch.float64) for numbers in pair) for pair in (ours, own)
    )
    network.register_buffer("teacher_factor", (std / own_std).float(), persistent=False)
    network.register_buffer("teacher_shift", ((mean - own_mean) / own_std).float(), persistent=False)
    network.register_forward_pre_hook(_rescaled)


def reorder(network: nn.Module, order: Sequence[int]) -> None:
    """Let output ``order[k]`` of a network be its logit of our class k."""
    network.register_buffer("teacher_order", torch.tensor(order, dtype=torch.int64), persistent=False)
    network.register_forward_hook(_reordered)


def has_view(network: nn.Module) -> bool:
    """Whether a network has a normalisation or an order of classes of its own."""
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
