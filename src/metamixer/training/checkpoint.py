"""Atomic checkpoints with checksums.

A checkpoint is a folder with weights as safetensors, the rest of the state as plain tensors and numbers, and a manifest
with checksums of both, because neither format detects a flipped bit. It is written to a temporary folder, flushed to
disk, and renamed; then the pointers ``LATEST`` and ``BEST`` are replaced in the same way. Whenever the process is
killed, the checkpoints that the pointers name are complete.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from metamixer.training.average import in_place_of_peers

SCHEMA = 2
_WEIGHTS, _STATE, _MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
_NAME = re.compile(r"step-[0-9]{1,20}-(whole|inside)")
_LONGEST = 1 << 20  # the largest accepted size of a manifest or a pointer in bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder, its manifest and its state, without the weights."""

    path: Path
    manifest: dict[str, Any]
    state: dict[str, Any]

    def load_weights(self, module: nn.Module, *, partial: bool = False, averaged: bool = False) -> None:
        """Load the weights into ``module``; names and shapes must match.

        Args:
            module: a module of the same structure as the saved one.
            partial: ignore tensors that the module does not have.
            averaged: load the averaged weights of the peers, if there are any.
        """
        try:
            tensors = safetensors.torch.load_file(self.path / _WEIGHTS)
            if averaged:
                tensors |= {place: tensors[name] for name in tensors if (place := in_place_of_peers(name))}
            found = module.load_state_dict(tensors, strict=False)
            own = _places(module.state_dict())
            there = {own[name] for name in tensors if name in own}
            # Shared tensors are saved once, under their first name.
            if missing := [name for name in found.missing_keys if own[name] not in there]:
                raise RuntimeError(f"it lacks {', '.join(sorted(missing)[:5])}")
            if found.unexpected_keys and not partial:
                raise RuntimeError(f"there is no place for {', '.join(sorted(found.unexpected_keys)[:5])}")
        except (RuntimeError, OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{self.path / _WEIGHTS} does not fit these networks: {error}") from error


def write(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    state: dict[str, Any],
    facts: dict[str, Any],
    *,
    whole: bool,
) -> Path:
    """Write the checkpoint of ``step`` into ``folder`` and return its path; no pointer names it yet.

    Args:
        folder: the folder ``checkpoints`` of the run.
        step: the step. With ``whole`` it gives the name of the checkpoint.
        weights: tensors from :func:`weights_of`.
        state: plain tensors, numbers, strings, lists and dicts.
        facts: entries of the manifest: recipe, versions.
        whole: whether the checkpoint was written after the end of an epoch rather than inside it. The two differ even
            after the same step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}-{'whole' if whole else 'inside'}"
    if final.exists():
        try:
            return read(final).path  # a resumed run repeats the step with identical results
        except CheckpointError:
            shutil.rmtree(final)
    partial = folder / f"{final.name}.tmp.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        safetensors.torch.save_file(dict(weights), partial / _WEIGHTS)
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
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # a full disk, in each of the libraries
        shutil.rmtree(partial, ignore_errors=True)
        last = pointed(folder, "LATEST")
        raise OSError(f"cannot write the checkpoint {final}: {error}; the last good one is {last}") from error
    return final


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module for a checkpoint: each once, under its first name, in the default memory format."""
    # Not by safetensors' `save_model`, which does not support tensors that are both shared and channels last.
    weights = module.state_dict()
    first = {place: name for name, place in reversed(_places(weights).items())}
    return {name: weights[name].contiguous() for name in first.values()}


def _places(weights: Mapping[str, Tensor]) -> dict[str, object]:
    """The memory location of each tensor of a module, equal for names that share a tensor."""
    return {
        name: (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        for name, tensor in weights.items()
    }


def point(folder: Path, pointer: str, checkpoint: Path) -> None:
    """Let ``LATEST`` or ``BEST`` name ``checkpoint``, atomically."""
    partial = folder / f"{pointer}.tmp.{os.getpid()}"
    partial.write_text(checkpoint.name + "\n")
    _flush(partial)
    partial.replace(folder / pointer)
    _flush(folder)


def pointed(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that a pointer names, or None if there is no pointer.

    Raises:
        CheckpointError: the pointer is damaged.
    """
    try:
        name = _short(folder / pointer).decode().strip()
    except FileNotFoundError:
        return None
    except (IsADirectoryError, ValueError) as error:
        raise CheckpointError(f"{folder / pointer} cannot be read: {error}") from error
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{folder / pointer} names no checkpoint: {name[:60]!r}")
    return folder / name


def prune(folder: Path, keep: int = 2) -> None:
    """Delete all checkpoints except the newest ``keep`` and those named by pointers, and leftovers of killed processes.

    If a pointer is damaged, no checkpoint is deleted, because it is unknown which one it named.
    """
    try:
        kept = {pointed(folder, "LATEST"), pointed(folder, "BEST"), *_newest_first(folder)[:keep]}
    except CheckpointError:
        kept = set(_newest_first(folder))
    for path in folder.glob("step-*"):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*.tmp.*"):
        path.unlink(missing_ok=True)


def read(path: Path) -> Checkpoint:
    """Open a checkpoint and verify all its files.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the format is that of another version.
    """
    manifest = _read_manifest(path)
    for name, known in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
            if size != known["bytes"]:
                raise CheckpointError(f"{path / name} has {size} bytes instead of {known['bytes']}")
            if _digest(path / name) != known["sha256"]:
                raise CheckpointError(f"{path / name} is damaged: its checksum is not the manifest's")
        except FileNotFoundError:
            raise CheckpointError(f"{path / name} is missing") from None
        except OSError as error:  # such as a bad sector: another checkpoint may be readable
            raise CheckpointError(f"{path / name} cannot be read: {error}") from error
    return Checkpoint(path, manifest, _read_state(path / _STATE))


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest; CheckpointError unless it has this format and size and checksum of both files."""
    file = path / _MANIFEST
    try:
        found = json.loads(_short(file))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    manifest: dict[str, Any] = found if isinstance(found, dict) else {}
    if (schema := manifest.get("schema")) is None:
        raise CheckpointError(f"{file} cannot be read: it is not the manifest of a checkpoint")
    if schema != SCHEMA:
        raise CheckpointError(f"{path} has format {schema!r:.60}, this version of metamixer reads format {SCHEMA}")
    files: Any = manifest.get("files")
    described = isinstance(files, dict) and files.keys() == {_WEIGHTS, _STATE}
    if not described or not all(
        isinstance(known, dict) and isinstance(known.get("bytes"), int) and isinstance(known.get("sha256"), str)
        for known in files.values()
    ):
        raise CheckpointError(f"{file} cannot be read: it does not say size and checksum of {_WEIGHTS} and {_STATE}")
    return manifest


def _read_state(file: Path) -> dict[str, Any]:
    """Read the state. A file can pass its checksum and still be forged, so its content is not trusted."""
    try:
        # A forged header may request more memory than there is, or cause any of these errors in torch.load.
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, ValueError, LookupError) as error:
        raise CheckpointError(f"{file} is not a training state: {str(error).partition('. ')[0]}") from error
    except (EOFError, TypeError, AttributeError, AssertionError, MemoryError) as error:
        raise CheckpointError(f"{file} is not a training state: {type(error).__name__}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file} is not a training state: it holds a {type(state).__name__}")
    return state


def read_latest(folder: Path) -> Checkpoint | None:
    """The newest usable checkpoint of a run, or None; damaged ones are skipped with a warning.

    Only checkpoints up to the one that ``LATEST`` names count. For a newer one the run was killed before ``BEST`` was
    updated; the resumed run repeats those steps with identical results. A damaged ``LATEST`` is repaired.
    """
    candidates, lost = _newest_first(folder), ""
    try:
        latest = pointed(folder, "LATEST")
        if latest is None and len(candidates) > 1:
            lost = f"{folder / 'LATEST'} is missing"
        elif latest is not None and latest not in candidates:
            lost = f"{folder / 'LATEST'} names {latest.name}, which is not there"
        else:
            candidates = [path for path in candidates if latest and _place(path) <= _place(latest)]
    except CheckpointError as error:
        lost = str(error)
    if lost:
        warnings.warn(f"passed over a pointer: {lost}", stacklevel=2)
    for path in candidates:
        try:
            found = read(path)
        except CheckpointError as error:
            warnings.warn(f"passed over a checkpoint: {error}", stacklevel=2)
            continue
        if lost and not (folder / "LATEST").is_dir():
            point(folder, "LATEST", path)
        return found
    if candidates or lost:
        raise CheckpointError(f"none of the {len(candidates)} checkpoints in {folder} is usable")
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_place, reverse=True)


def _place(path: Path) -> tuple[int, str]:
    """Sort key: the step, and after the last step of an epoch the checkpoint before validation first."""
    _, step, end = path.name.split("-")
    return int(step), end


def _short(file: Path) -> bytes:
    """The content of a short file."""
    if not file.is_file() and file.exists():
        raise IsADirectoryError(f"{file} is not a file")  # reading a pipe would block
    with file.open("rb") as opened:
        content = opened.read(_LONGEST + 1)
    if len(content) > _LONGEST:
        raise ValueError(f"more than {_LONGEST} bytes")
    return content


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
