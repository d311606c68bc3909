"""Checkpoints that are whole or not there, and that know when they were damaged.

A checkpoint is a folder: weights as safetensors, the rest of the state as plain tensors and numbers, and a manifest
with the checksum of both, because a flipped bit loads silently in either format. It is written beside its place
under another name, flushed to the disk, and renamed; then the pointers ``LATEST`` and ``BEST`` are replaced in the
same way. Whenever the process dies, what the pointers name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

SCHEMA = 1
_WEIGHTS, _STATE, _MANIFEST = "weights.safetensors", "state.pt", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder, its manifest and its state, without the weights."""

    path: Path
    manifest: dict[str, Any]
    state: dict[str, Any]

    def load_weights(self, module: nn.Module, *, partial: bool = False) -> None:
        """Put the weights into ``module``, which must have those names and shapes.

        Args:
            module: of the same structure as the one that was written.
            partial: leave aside what the module has no place for.
        """
        try:
            tensors = safetensors.torch.load_file(self.path / _WEIGHTS)
            found = module.load_state_dict(tensors, strict=False)
            own = _places(module)
            there = {own[name] for name in tensors if name in own}
            # What modules share was written once, under its first name.
            if missing := [name for name in found.missing_keys if own[name] not in there]:
                raise RuntimeError(f"it lacks {', '.join(sorted(missing)[:5])}")
            if found.unexpected_keys and not partial:
                raise RuntimeError(f"there is no place for {', '.join(sorted(found.unexpected_keys)[:5])}")
        except RuntimeError as error:
            raise CheckpointError(f"{self.path / _WEIGHTS} does not fit these networks: {error}") from error


def write(
    folder: Path, step: int, module: nn.Module, state: dict[str, Any], facts: dict[str, Any], *, whole: bool
) -> Path:
    """Write the checkpoint of ``step`` into ``folder`` and return its path; it is not pointed to yet.

    Args:
        folder: the run's ``checkpoints``.
        step: names it, together with ``whole``: after a step inside of an epoch, or after the epoch was closed. The
            two differ even after the same step, and neither must be taken for the other.
        module: whose weights are saved; shared tensors are saved once.
        state: plain tensors, numbers, strings, lists and dicts.
        facts: for the manifest: recipe, versions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}-{'whole' if whole else 'inside'}"
    if final.exists():
        try:
            return read(final).path  # a resumed run comes by again with the same bits
        except CheckpointError:
            shutil.rmtree(final)
    partial = folder / f"{final.name}.tmp.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        # Not by `save_model`: it cannot look at memory that is both shared and channels last.
        first = {place: name for name, place in reversed(_places(module).items())}
        weights = module.state_dict()
        safetensors.torch.save_file({name: weights[name].contiguous() for name in first.values()}, partial / _WEIGHTS)
        torch.save(state, partial / _STATE)
        files = {
            name: {"sha256": _digest(partial / name), "bytes": (partial / name).stat().st_size}
            for name in (_WEIGHTS, _STATE)
        }
        manifest = {"schema": SCHEMA, "step": step, "files": files, **facts}
        (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        for name in (_WEIGHTS, _STATE, _MANIFEST, "."):
            _flush(partial / name)
        partial.rename(final)
        _flush(folder)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # what a full disk raises in each library
        shutil.rmtree(partial, ignore_errors=True)
        last = pointed(folder, "LATEST")
        raise OSError(f"cannot write the checkpoint {final}: {error}; the last good one is {last}") from error
    return final


def _places(module: nn.Module) -> dict[str, object]:
    """Where each tensor of a module is in memory: the same for names that share one."""
    return {
        name: (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        for name, tensor in module.state_dict().items()
    }


def point(folder: Path, pointer: str, checkpoint: Path) -> None:
    """Let ``LATEST`` or ``BEST`` name ``checkpoint``, atomically."""
    partial = folder / f"{pointer}.tmp.{os.getpid()}"
    partial.write_text(checkpoint.name + "\n")
    _flush(partial)
    partial.replace(folder / pointer)
    _flush(folder)


def pointed(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that a pointer names, or None."""
    try:
        return folder / (folder / pointer).read_text().strip()
    except FileNotFoundError:
        return None


def prune(folder: Path, keep: int = 2) -> None:
    """Delete all but the newest ``keep`` checkpoints and those pointed to, and what a killed process left behind."""
    kept = {pointed(folder, "LATEST"), pointed(folder, "BEST"), *_newest_first(folder)[:keep]}
    for path in folder.glob("step-*"):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*.tmp.*"):
        path.unlink(missing_ok=True)


def read(path: Path) -> Checkpoint:
    """Open one checkpoint and verify every byte of it.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the format is another version's.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        schema, files = manifest["schema"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / _MANIFEST} cannot be read: {error}") from error
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has format {schema}, this version of metamixer reads format {SCHEMA}")
    for name in (_WEIGHTS, _STATE):
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing")
        size = (path / name).stat().st_size
        if size != files[name]["bytes"]:
            raise CheckpointError(f"{path / name} has {size} bytes instead of {files[name]['bytes']}")
        if _digest(path / name) != files[name]["sha256"]:
            raise CheckpointError(f"{path / name} is damaged: its checksum is not the manifest's")
    return Checkpoint(path, manifest, torch.load(path / _STATE, map_location="cpu", weights_only=True))


def read_latest(folder: Path) -> Checkpoint | None:
    """The newest usable checkpoint of a run, or None; one that is damaged is passed over with a warning."""
    first = pointed(folder, "LATEST")
    candidates = ([first] if first else []) + [path for path in _newest_first(folder) if path != first]
    for path in candidates:
        try:
            return read(path)
        except CheckpointError as error:
            warnings.warn(f"passed over a checkpoint: {error}", stacklevel=2)
    if candidates:
        raise CheckpointError(f"none of the {len(candidates)} checkpoints in {folder} is usable")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if ".tmp." not in path.name), reverse=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
