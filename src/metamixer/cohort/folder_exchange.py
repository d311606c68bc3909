"""Exchange weights between the processes of several peers through files in a shared folder.

Every process has one file, ``peer-<number>.safetensors``, which it replaces atomically. A file that is missing, damaged
or not finite is skipped, so that a process that fails or is slow does not block the others.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn


def exchange(folder: Path, number: int, own: nn.Module, others: Mapping[int, nn.Module]) -> list[int]:
    """Write the weights of ``own`` and read those of the others; return the numbers of the networks that were read.

    Args:
        folder: a folder that all processes can access.
        number: number of the network of this process.
        own: the network that this process trains.
        others: copies of the networks of the other processes, by number.

    Raises:
        ValueError: a file holds the weights of another network.
    """
    _publish(own, _file(folder, number))
    came = []
    for other, network in others.items():
        if (found := _received(_file(folder, other))) is None:
            continue
        try:
            network.load_state_dict(found)
        except RuntimeError as error:
            raise ValueError(
                f"{_file(folder, other)} does not fit the frozen peer that stands for process {other}, which has to be "
                f"the network that it trains: {' '.join(str(error).split())}"
            ) from error
        came.append(other)
    return came


def _file(folder: Path, number: int) -> Path:
    return folder / f"peer-{number}.safetensors"


def _publish(network: nn.Module, path: Path) -> None:
    """Replace the file atomically. A disk that is full or unavailable does not stop training."""
    partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(weights, partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the other processes keep an earlier copy of this peer: {error}", stacklevel=3)


def _received(path: Path) -> dict[str, Tensor] | None:
    """The weights of another process; None if there are none or they are not usable."""
    try:
        found = safetensors.torch.load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        warnings.warn(f"passed over {path}: {error}", stacklevel=3)
        return None
    if not all(value.isfinite().all() for value in found.values()):
        warnings.warn(f"passed over {path}: its weights are not finite", stacklevel=3)
        return None
    return found
