"""``model.json`` and the model card of an exported file."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metamixer.config.yaml_file import RecipeError
from metamixer.core.text import counted
from metamixer.data.files.image_file import WHITE
from metamixer.export.select_network import Chosen
from metamixer.models.factory import takes_image_size
from metamixer.runs.classifier import Classifier

FORMAT = "metamixer-export-1"
_MARK = "library_name: metamixer"
_PREPARED = (
    "{fit}, resized bilinearly with antialiasing by Pillow; JPEGs decoded in full, EXIF orientation applied, "
    "transparency on white, other modes to grey (1 channel) or RGB (3)"
)
_FIT = {
    "crop": "largest centred part of the proportions of `size`",
    "letterbox": "the whole image with grey bars (128) beside it",
    "squash": "the whole image, its proportions changed to those of `size`",
}
_BILINEAR = "(width, height), Image.Resampling.BILINEAR"
_RESIZE = {
    "crop": f"ImageOps.fit(image, {_BILINEAR})",
    "letterbox": f"ImageOps.pad(image, {_BILINEAR}, color=128 if image.mode == 'L' else (128,) * 3)",
    "squash": f"image.resize({_BILINEAR})",
}
_CODE = (
    ("onnxruntime, Pillow and numpy", ".onnx", "usage_onnx"),
    ("timm, safetensors, Pillow and numpy", ".safetensors", "usage_timm"),
)

_ROWS = (
    ("accuracy", "accuracy", "{:.2%}"),
    ("top5", "accuracy, among the first five", "{:.2%}"),
    ("nll", "negative log-likelihood (nats)", "{:.4f}"),
    ("brier", "Brier score", "{:.4f}"),
    ("ece", "expected calibration error", "{:.4f}"),
    ("temperature", "temperature that calibrates it", "{:.4f}"),
    ("validation_accuracy", "validation accuracy, by which it was chosen", "{:.2%}"),
)


def describe(chosen: Chosen, metrics: dict[str, Any], license: str | None) -> dict[str, Any]:
    """The content of ``model.json``, except the files."""
    classifier, recipe = chosen.classifier, chosen.recipe
    return {
        "format": FORMAT,
        "network": {
            "what": chosen.title,
            "asked_for": chosen.peer,
            "architecture": {"name": classifier.name, "options": classifier.options},
            "parameters": sum(each.numel() for each in classifier.network.parameters()),
        },
        "classes": list(classifier.classes),
        "input": {
            "dtype": "uint8" if classifier.bits == 8 else "float32",
            "shape": ["batch", classifier.channels, *classifier.size],
            **_prepared(classifier),
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            "normalisation": "(pixel / 255 - mean) / std, inside of .onnx and .pt2 files",
        },
        "output": "logits (batch, classes); their softmax are the probabilities",
        "training": {
            **{key: value for key, value in classifier.facts.items() if key != "validation_accuracy"},
            "epochs": recipe.train.epochs,
            "seed": recipe.train.seed,
            "precision": recipe.train.precision,
        },
        "figures": metrics,
        "license": license,
        "versions": _versions(),
    }


def _prepared(classifier: Classifier) -> dict[str, Any]:
    said: dict[str, Any] = {"prepare": _PREPARED.format(fit=_FIT[classifier.fit]), "fit": classifier.fit}
    if classifier.bits != 8:
        said |= {"bits": classifier.bits, "values": f"0 to 255: value * 255 / {classifier.white} of 16-bit files"}
    return said | ({"white": classifier.white} if classifier.white != WHITE else {})


def _usage(described: dict[str, Any], files: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """Packages, and code that uses a file with these packages only: for ONNX files, and weights of timm networks."""
    shape, network = described["input"]["shape"], described["network"]["architecture"]
    if shape[1] not in (1, 3) or described["input"].get("bits", 8) != 8:  # reading these images takes more code
        return []
    found = []
    for packages, ending, code in _CODE:
        name = next((name for name in files if name.endswith(ending)), None)
        if name is None or (ending == ".safetensors" and not network["name"].startswith("timm:")):
            continue
        text = _part(code).replace("PREPARE\n", _part("prepare")).replace('"FILE"', json.dumps(name))
        text = text.replace("RESIZE", _RESIZE[described["input"]["fit"]])
        if ending == ".safetensors" and takes_image_size(network["name"], shape[2:], network["options"]):
            text = text.replace('"pretrained": False', '"pretrained": False, "img_size": how["size"]')
        found.append((packages, text))
    return found


def _part(name: str) -> str:
    return Path(__file__).with_name(f"{name}.py.txt").read_text(encoding="utf-8")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("metamixer", "onnx", "onnxruntime", "onnxscript", "safetensors", "timm", "huggingface_hub"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_place(card: Path) -> None:
    """Raise RecipeError if another file, such as the README of a project, has the name of the model card."""
    if card.is_file() and _MARK not in card.read_text(encoding="utf-8", errors="replace")[:500]:
        raise RecipeError(f"{card} was not written by metamixer export; --out names another place")


def write(card: Path, facts: Path, described: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Write the model card and ``model.json``; files from earlier exports of the same network remain listed.

    Args:
        card: path of the model card (Markdown).
        facts: path of ``model.json``.
        described: see :func:`describe`.
        files: information about the files written now, by name.
    """
    files = _before(facts, described) | files
    facts.write_text(json.dumps(described | {"files": files}, indent=1) + "\n", encoding="utf-8")
    card.write_text(text(described, files), encoding="utf-8")


def _before(facts: Path, described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        old = json.loads(facts.read_text(encoding="utf-8"))
        same = old["network"] == described["network"] and old["training"] == described["training"]
        return {name: one for name, one in old["files"].items() if same and (facts.parent / name).is_file()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def for_classifier(classifier: Classifier) -> str:
    """The model card of a classifier without a run."""
    described = {
        "network": {
            "what": classifier.name,
            "architecture": {"name": classifier.name},
            "parameters": sum(each.numel() for each in classifier.network.parameters()),
        },
        "classes": list(classifier.classes),
        "input": {
            "shape": ["batch", classifier.channels, *classifier.size],
            **_prepared(classifier),
            "mean": list(classifier.mean),
            "std": list(classifier.std),
        },
        "training": dict(classifier.facts),
        "figures": {},
        "license": None,
        "versions": _versions(),
    }
    return text(described, {})


def text(described: dict[str, Any], files: dict[str, dict[str, Any]]) -> str:
    """The text of the model card."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=False,  # noqa: S701  (Markdown: the template passes all texts through `plain`)
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": _plain, "numbers": _numbers, "json": json.dumps, "counted": counted}
    return environment.get_template("card.md.j2").render(
        described, files=files, mark=_MARK, rows=_ROWS, usage=_usage(described, files)
    )


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _plain(value: object) -> str:
    """Text on one line, escaped for Markdown and HTML."""
    shown = " ".join(str(value).split())
    for sign in "\\`*_[]<>|&$":
        shown = shown.replace(
            sign, f"\\{sign}" if sign not in "<>&" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}[sign]
        )
    return "".join(char if char.isprintable() else "�" for char in shown)
