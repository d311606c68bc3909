"""Export: select a network, write it, read it back, compare the outputs, and move the file into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from metamixer.config.yaml_file import RecipeError
from metamixer.export import model_card, quantize
from metamixer.export.errors import need
from metamixer.export.onnx_file import read_onnx, write_onnx
from metamixer.export.quantize import Quantised
from metamixer.export.recorded_metrics import recorded_metrics
from metamixer.export.safetensors_file import read_safetensors, write_safetensors
from metamixer.export.select_network import Chosen, choose
from metamixer.export.torch_file import read_pt2, write_pt2
from metamixer.export.verify import Checked, Run, reference
from metamixer.export.verify import check as compare
from metamixer.runs.classifier import Classifier
from metamixer.runs.data_record import section_of
from metamixer.runs.run import check_outside_of_data

To = Literal["safetensors", "onnx", "torch-export", "hub"]
CALIBRATION = 256


@dataclass(frozen=True)
class Target:
    """A type of file: its name, the packages it needs, and functions to write and read it."""

    file: str
    extra: str
    packages: tuple[str, ...]
    write: Callable[[Classifier, Path, torch.device], None]
    read: Callable[[Path, torch.device], Run]


TARGETS: dict[str, Target] = {
    "safetensors": Target("model.safetensors", "", (), write_safetensors, read_safetensors),
    "onnx": Target("model.onnx", "export", ("onnx", "onnxscript", "onnxruntime"), write_onnx, read_onnx),
    "torch-export": Target("model.pt2", "", (), write_pt2, read_pt2),
    "hub": Target("model.safetensors", "hub", ("huggingface_hub",), write_safetensors, read_safetensors),
}


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Args:
        path: the file; for ``hub`` the folder.
        title: description of the network.
        classes: number of classes.
        kib: size of the file with the weights in KiB.
        checked: comparison with the network in PyTorch.
        split: split of the images that were compared.
        card, facts: the model card and ``model.json``.
        int8: the quantised file and its accuracy, if requested.
        pushed: address on the hub, if it was pushed.
    """

    path: Path
    title: str
    classes: int
    kib: float
    checked: Checked
    split: str
    card: Path
    facts: Path
    int8: Quantised | None = None
    pushed: str | None = None

    @property
    def difference(self) -> float:
        """The largest difference of two logits between the file and the network in PyTorch."""
        return self.checked.difference


def export(
    run: str | Path,
    peer: str | int = "best",
    to: To = "onnx",
    *,
    out: str | Path | None = None,
    quantize: Literal["int8"] | None = None,
    tolerance: float = 1e-4,
    device: str = "cpu",
    license: str | None = None,
    push: str | None = None,
    calibration: int = CALIBRATION,
    data: str | None = None,
    check: bool = True,
) -> Exported:
    """Write a network of a run to a file for other systems, and verify it on images of the run.

    Args:
        run: the run folder.
        peer: ``best``, ``leader``, ``ensemble`` or the index of a peer: see :func:`metamixer.export.choose`.
        to: ``onnx``, ``torch-export`` (both take uint8 images and include the normalisation), ``safetensors`` (the
            format of :class:`~metamixer.runs.classifier.Classifier`) or ``hub`` (a folder for the Hugging Face Hub).
        out: a file with the right suffix, or a folder; None: ``RUN/export/PEER``, for ``hub`` ``RUN/export/PEER-hub``.
        quantize: ``int8``, for ``onnx``: a second file with 8-bit weights and activations.
        tolerance: largest difference of logits between PyTorch and the file; see :func:`metamixer.export.verify.check`.
        device: target device of a ``torch-export`` file; the other files run anywhere.
        license: license in the model card; None: not stated.
        push: with ``hub``, the repository to push the folder to.
        calibration: number of training images to measure the ranges of ``int8`` on.
        data: the current path of the data; None: as in training.
        check: read the data, refuse them if they have changed, and verify on them. False: do not read data, and verify
            on random images.

    Raises:
        RecipeError: an argument or a combination of arguments is not valid, or a package is missing.
        ExportError: the network cannot be exported, or the outputs of the file differ; the file is then removed.
        DataError, CheckpointError: the data or checkpoints of the run are missing or damaged.
        OSError: the folder is not writable.
    """
    folder, wanted = Path(run), str(peer)
    _refuse(to, quantize, tolerance, device, push, calibration)
    where = torch.device(device)
    if quantize is not None and not check:
        raise RecipeError("--quantize int8 measures ranges on training images, which --no-check does not read")
    chosen = choose(folder, wanted, data=data, check=check)
    place = _place(folder, wanted, to, out)
    check_outside_of_data(section_of(chosen.recipe, folder, data), place.file.parent)
    model_card.check_place(place.card)
    place.file.parent.mkdir(parents=True, exist_ok=True)
    described = model_card.describe(chosen, recorded_metrics(folder, chosen), license)
    target = TARGETS[to]
    # Written and verified under another name, so that a failure does not destroy an earlier file.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=place.file.parent) as temporary:
        partial = Path(temporary, target.file)
        target.write(chosen.classifier, partial, where)
        chosen.classifier.network.to(where)
        split, images = chosen.shown
        checked = compare(
            place.file.name, reference(chosen.classifier, where), target.read(partial, where), images, tolerance
        )
        small = None
        if quantize is not None:
            small = _quantised(chosen, partial, Path(temporary), calibration)
            os.replace(small.path, place.int8)
            small = replace(small, path=place.int8)
        if to == "hub":
            _add_config(chosen, Path(temporary))
            os.replace(Path(temporary, "config.json"), place.file.parent / "config.json")
        os.replace(partial, place.file)
    files = {place.file.name: _about(place.file) | _of_check(checked)}
    if small is not None:
        files[place.int8.name] = _about(place.int8) | {
            key: value for key, value in asdict(small).items() if key not in ("path", "kib", "kib_int8")
        }
    model_card.write(place.card, place.facts, described, files)
    pushed = _push(place.file.parent, push) if push is not None else None
    return Exported(
        path=place.file.parent if to == "hub" else place.file,
        title=chosen.title,
        classes=len(chosen.classifier.classes),
        kib=place.file.stat().st_size / 1024,
        checked=checked,
        split=split,
        card=place.card,
        facts=place.facts,
        int8=small,
        pushed=pushed,
    )


def _refuse(to: str, quantize: str | None, tolerance: float, device: str, push: str | None, calibration: int) -> None:
    if to not in TARGETS:
        raise RecipeError(f"--to {to}: expected {', '.join(get_args(To))}")
    if quantize not in (None, "int8"):
        raise RecipeError(f"--quantize {quantize}: expected int8")
    if quantize is not None and to != "onnx":
        raise RecipeError(f"--quantize {quantize} is for ONNX files; expected --to onnx")
    if not 0 < tolerance < float("inf"):
        raise RecipeError(f"--tolerance {tolerance:g}: expected a number above 0, such as 1e-4")
    if calibration < 1:
        raise RecipeError(f"calibration={calibration}: at least one image, 256 is usual")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(f"--device {device}, but torch finds no GPU here; expected cpu")
    if device != "cpu" and to != "torch-export":
        raise RecipeError(f"--device {device} is for --to torch-export; a file for {to} runs anywhere")
    if push is not None and to != "hub":
        raise RecipeError(f"--push {push} goes with --to hub, not with {to}")
    target = TARGETS[to]
    need(target.extra, *target.packages)


@dataclass(frozen=True)
class _Place:
    """The paths of all files."""

    file: Path
    int8: Path
    card: Path
    facts: Path


def _place(run: Path, peer: str, to: str, out: str | Path | None) -> _Place:
    """The paths in a folder are the default names; the names beside a given file are derived from its name."""
    usual = Path(TARGETS[to].file)
    name = f"peer-{int(peer)}" if peer.isdecimal() else peer
    if to == "hub":
        name += "-hub"  # a separate folder, because all of it is pushed
    folder = run / "export" / name if out is None else Path(out)
    if out is not None and folder.suffix and not folder.is_dir() and to != "hub":
        if folder.suffix != usual.suffix:
            raise RecipeError(f"--out {out}: a file for {to} ends in {usual.suffix}, and a folder has no ending")
        file = folder
        return _Place(
            file, file.with_name(f"{file.stem}-int8.onnx"), file.with_suffix(".md"), file.with_suffix(".json")
        )
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out {out} is a file; expected a folder, or a name that ends in {usual.suffix}")
    return _Place(folder / usual, folder / "model-int8.onnx", folder / "README.md", folder / "model.json")


def _quantised(chosen: Chosen, written: Path, folder: Path, calibration: int) -> Quantised:
    pixels = quantize.calibration_images(chosen.data.train, calibration, chosen.recipe.train.seed)
    small = folder / "model-int8.onnx"
    quantize.quantise(written, small, pixels)
    split, images = chosen.shown
    return quantize.compare(written, small, split, images, len(pixels))


def _add_config(chosen: Chosen, folder: Path) -> None:
    """Add the ``config.json`` of the hub mixin, by which the hub counts downloads."""
    from metamixer.export.hub import HubClassifier

    with tempfile.TemporaryDirectory() as other:
        model: Any = HubClassifier.of(chosen.classifier)
        model.save_pretrained(other)
        shutil.copy(Path(other, "config.json"), folder)


def _push(folder: Path, repository: str) -> str:
    from metamixer.export.hub import HubClassifier

    loaded: Any = HubClassifier.from_pretrained(folder)
    loaded.card = (folder / "README.md").read_text(encoding="utf-8")
    return str(loaded.push_to_hub(repository))


def _about(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}


def _of_check(checked: Checked) -> dict[str, Any]:
    return {"difference": checked.difference, "limit": checked.limit, "checked_images": checked.images}
