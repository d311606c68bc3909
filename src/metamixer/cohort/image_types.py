"""Explain a mismatch between the dtypes of images and weights, which the message of PyTorch does not name."""

from __future__ import annotations

from torch import Tensor, nn


def type_conflict(network: nn.Module, images: Tensor) -> str:
    """An error message if the dtype of images does not fit a network; empty if it does.

    >>> import torch
    >>> type_conflict(nn.Linear(2, 2), torch.zeros(1, 2, dtype=torch.float64))
    'images are float64 and the weights float32; accepted: one type, by images.float() or network.double()'
    """
    weight = next((each for each in network.parameters() if each.is_floating_point()), None)
    if weight is None or images.dtype == weight.dtype:
        return ""
    own, other = (str(each.dtype).removeprefix("torch.") for each in (images, weight))
    if not images.is_floating_point():
        return f"images are {own}; accepted: floating point, normalised, such as (images.float() / 255 - mean) / std"
    casts = {"float64": "double", "float32": "float", "float16": "half"}
    ways = f"images.{casts.get(other, other)}() or network.{casts.get(own, own)}()"
    return f"images are {own} and the weights {other}; accepted: one type, by {ways}"
