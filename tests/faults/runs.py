"""Runs of a second on tiny images, and what two of them must have in common to the last bit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image

from metamixer.config.registry import LOSSES
from metamixer.training import checkpoint

EPOCHS, STEPS = 3, 5  # steps of an epoch
TINY = ["--epochs", EPOCHS, "--batch-size", 8, "--device", "cpu", "--quiet", "data.val_share=0.2"]
_LOGGED = ("epoch", "step", "lr", "terms", "train_accuracy", "val")


def photos(root: Path, classes: int = 3, count: int = 20) -> Path:
    """A folder of small images, a class a shade."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 100, (8, 8, 3)) + 50 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"class {label}" / f"{number:02d}.png")
    return root


def words(data: Path, loss: str = "dml", mixer: str = "metamixer", workers: int = 0) -> list[object]:
    """The command that trains the narrowest networks by a method, on what the method needs."""
    needs = getattr(LOSSES[loss], "needs", ())
    narrow = ["peers.0.widths=[2,2,4,4]", "peers.1.widths=[2,4,4,4]"]
    if "trunk" in needs:
        peers = ["--peers", "resnet8", "peers.0.widths=[2,2,4,4]", "peers.0.branches=2"]
    elif "teacher" in needs:
        peers = ["--peers", "resnet8,resnet8,resnet8", *narrow, "peers.2.frozen=true"]
    else:
        peers = ["--peers", "resnet8,resnet8", *narrow]
    some = ["train.per_class=2", "--batch-size", 6] if "per-class" in needs else []
    return ["train", "--data", data, *TINY, *some, *peers, "--loss", loss, "--mixer", mixer, f"data.workers={workers}"]


def outcome(folder: Path) -> dict[str, object]:
    """All that must not depend on how often a run was killed: weights, optimizer, every logged loss, the report."""
    latest = checkpoint.pointed(folder / "checkpoints", "LATEST")
    best = checkpoint.pointed(folder / "checkpoints", "BEST")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "model": _model(folder / "model.safetensors"),
        "latest": (latest.name, fingerprint(latest)),
        "best": (best.name, fingerprint(best)),
        "losses": [{key: row[key] for key in _LOGGED} for row in rows],
        "report": json.loads((folder / "report.json").read_text()),
    }


def _model(path: Path) -> tuple[dict[str, str], str]:
    """What the file says and holds; the library writes the header's names in any order."""
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    digest = hashlib.sha256()
    _add(digest, safetensors.torch.load_file(path))
    return metadata, digest.hexdigest()


def fingerprint(path: Path) -> str:
    """SHA-256 of a checkpoint's weights, optimizer and all else of its state; CheckpointError if it is not whole."""
    found = checkpoint.read(path)
    digest = hashlib.sha256((path / "weights.safetensors").read_bytes())
    _add(digest, found.state)
    return digest.hexdigest()


def _add(digest: object, value: object) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _add(digest, item)
    else:
        digest.update(value.hex().encode() if isinstance(value, float) else repr(value).encode())


def whole(folder: Path) -> dict[str, str]:
    """The fingerprint of every checkpoint of a run that is taken for whole."""
    found = {}
    for path in sorted((folder / "checkpoints").glob("step-*")):
        try:
            found[path.name] = fingerprint(path)
        except checkpoint.CheckpointError:
            continue
    return found
