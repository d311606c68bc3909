"""Initial weights of a recipe's peers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from metamixer.core.text import listed
from metamixer.training.nan_checks import not_finite_weight

_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


def load_weights(network: nn.Module, path: Path) -> None:
    """Read a ``.safetensors`` file into a network. Names may have the prefix of DataParallel or torch.compile.

    Raises:
        ValueError: on one line: another kind of file, one that cannot be read, the weights of another network, or
            values that are not finite.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"weights={path}: only .safetensors files are read, a pickled file could run any code")
    import safetensors.torch

    try:
        found = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights={path} cannot be read: {error}") from error
    wanted = network.state_dict()
    for prefix in _WRAPPERS:
        if all(key.startswith(prefix) for key in found) and not any(key.startswith(prefix) for key in wanted):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    if wrong := _differences(found, wanted):
        raise ValueError(f"weights={path} are those of another network: {wrong}")
    network.load_state_dict(found, strict=False)
    if name := not_finite_weight(network):
        raise ValueError(f"weights={path}: {name!r} holds values that are not finite; nothing could learn from them")


def _differences(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Which tensors are missing, unknown or of another shape; empty where all fit."""
    there = {wanted[key].data_ptr() for key in wanted.keys() & found}  # tensors with two names are saved once
    missing = [key for key in wanted if key not in found and wanted[key].data_ptr() not in there]
    unknown = [key for key in found if key not in wanted]
    shapes = [
        f"{key} {tuple(found[key].shape)} in the file, {tuple(wanted[key].shape)} here"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    named = {"missing": missing, "unknown": unknown, "of another shape": shapes}
    return "; ".join(f"{len(keys)} tensors {what}: {listed(keys, 3)}" for what, keys in named.items() if keys)
