"""Initial weights of peers, and the classes and preprocessing in the metadata of their files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metamixer.core.text import listed
from metamixer.training.nan_checks import not_finite_weight

FORMAT = "metamixer-classifier-1"
"""The format name in the metadata of a deployed network."""
_WRAPPERS = ("module.", "_orig_mod.")  # name prefixes added by DataParallel and torch.compile


@dataclass(frozen=True)
class Said:
    """The metadata of a file; empty unless this package wrote it.

    Args:
        classes: names of the classes, in the order of the outputs.
        scale: mean and standard deviation of each channel of the images.
        size: height and width of the images.
    """

    classes: tuple[str, ...] | None = None
    scale: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    size: tuple[int, ...] | None = None


def said_of(path: Path) -> Said:
    """Read the metadata of a ``.safetensors`` file; ``ValueError`` if it cannot be read."""
    import safetensors

    _check_kind(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"weights={path} cannot be read: {error}") from error
    if metadata.get("format") != FORMAT:
        return Said()
    try:
        classes, images = json.loads(metadata["classes"]), json.loads(metadata["preprocessing"])
        scale = tuple(tuple(float(value) for value in images[key]) for key in ("mean", "std"))
        return Said(tuple(map(str, classes)), (scale[0], scale[1]), tuple(int(side) for side in images["size"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"weights={path}: its metadata are damaged: {error}") from error


def load_weights(
    network: nn.Module,
    path: Path,
    head: Mapping[str, int] | Callable[[], Mapping[str, int]] | None = None,
    order: Sequence[int] | None = None,
    *,
    new_head: bool = False,
) -> list[str]:
    """Load a ``.safetensors`` file into a network. Names may have the prefix of DataParallel or torch.compile.

    Args:
        network: a new network.
        path: the file.
        head: the tensors of the head, each with the axis of the classes (:func:`head_of`), which may be missing in the
            file or have another shape; None: all tensors must fit.
        order: output ``order[k]`` of the file is class k; None: the same order.
        new_head: do not load the head even if it fits.

    Returns:
        The tensors of the head that were not loaded.

    Raises:
        ValueError: the file has another type, cannot be read, belongs to another network, or has values that are not
            finite. The message has one line.
    """
    _check_kind(path)
    import safetensors.torch

    try:
        found = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights={path} cannot be read: {error}") from error
    wanted = network.state_dict()
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in found) and not any(key.startswith(prefix) for key in wanted):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    new: list[str] = []
    if head is not None and (new_head or order is not None or _differences(found, wanted)):
        axes = head() if callable(head) else head
        if order is not None:
            index = torch.tensor(order, dtype=torch.int64)
            found |= {key: found[key].index_select(axis, index) for key, axis in axes.items() if key in found}
        new = [key for key in axes if new_head or key not in found or found[key].shape != wanted[key].shape]
        found = {key: value for key, value in found.items() if key not in new}
    if wrong := _differences(found, {key: value for key, value in wanted.items() if key not in new}):
        raise ValueError(f"weights={path} are those of another network: {wrong}")
    network.load_state_dict(found, strict=False)
    if name := not_finite_weight(network):
        raise ValueError(f"weights={path}: {name!r} holds values that are not finite; nothing could learn from them")
    return new


def head_of(network: nn.Module, other: nn.Module) -> dict[str, int]:
    """The tensors whose shape depends on the number of classes, each with the axis of the classes.

    Args:
        network: a network.
        other: the same network for another number of classes.
    """
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    return {
        key: next(axis for axis, (a, b) in enumerate(zip(value.shape, shapes[key], strict=True)) if a != b)
        for key, value in network.state_dict().items()
        if key in shapes and value.shape != shapes[key]
    }


def _check_kind(path: Path) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"weights={path}: only .safetensors files are read, a pickled file could run any code")


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> str:
    """A message about tensors that are missing, unknown or have another shape; empty if all fit."""
    there = {wanted[key].data_ptr() for key in wanted.keys() & found.keys()}  # shared tensors are saved once
    missing = [key for key in wanted if key not in found and wanted[key].data_ptr() not in there]
    unknown = [key for key in found if key not in wanted]
    shapes = [
        f"{key} {tuple(found[key].shape)} in the file, {tuple(wanted[key].shape)} here"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    named = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    return "; ".join(f"{len(keys)} tensors {what}: {listed(keys, 3)}" for what, keys in named.items() if keys)
