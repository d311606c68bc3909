"""Beside every exported file: ``model.json`` for programs, and a model card for people."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metamixer.classifier import Classifier
from metamixer.export.network import Chosen
from metamixer.recipe_file import RecipeError

FORMAT = "metamixer-export-1"
_MARK = "library_name: metamixer"
_RESIZE = (
    "largest centred part of the proportions of `size`, resized bilinearly with antialiasing; EXIF orientation "
    "applied, transparency on white, other modes to grey (1 channel) or RGB (3)"
)


def describe(chosen: Chosen, figures: dict[str, Any], license: str | None) -> dict[str, Any]:
    """All that ``model.json`` says, but the files."""
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
            "dtype": "uint8",
            "shape": ["batch", classifier.channels, *classifier.size],
            "prepare": _RESIZE,
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
        "figures": figures,
        "license": license,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in ("metamixer", "onnx", "onnxruntime", "onnxscript", "safetensors", "timm", "huggingface_hub"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_place(card: Path) -> None:
    """Raise RecipeError if there is a card that is not one of ours, such as the README of a project."""
    if card.is_file() and _MARK not in card.read_text(encoding="utf-8", errors="replace")[:500]:
        raise RecipeError(f"{card} was not written by metamixer export; --out names another place")


def write(card: Path, facts: Path, described: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Write both; files of the same network that an earlier export put there stay in the list.

    Args:
        card: the model card, Markdown.
        facts: ``model.json``.
        described: see :func:`describe`.
        files: by name, what is known of each that was written now.
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
    """The card of a classifier of which no run is known."""
    described = {
        "network": {
            "what": classifier.name,
            "architecture": {"name": classifier.name},
            "parameters": sum(each.numel() for each in classifier.network.parameters()),
        },
        "classes": list(classifier.classes),
        "input": {
            "shape": ["batch", classifier.channels, *classifier.size],
            "prepare": _RESIZE,
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
    """The model card."""
    network, training, into = described["network"], described["training"], described["input"]
    license = described["license"]
    channels, height, width = into["shape"][1:]
    kind = "grey" if channels == 1 else "RGB"
    classes = described["classes"]
    named = ", ".join(_plain(name) for name in classes[:20]) + (f" and {len(classes) - 20} more" * (len(classes) > 20))
    lines = [
        "---",
        _MARK,
        "pipeline_tag: image-classification",
        *([f"license: {json.dumps(license)}"] if license else []),
        "tags:",
        "- image-classification",
        "- knowledge-distillation",
        "- metamixer",
        "---",
        "",
        f"# {_plain(network['architecture']['name'])}, {len(classes)} classes",
        "",
        f"An image classifier: {_plain(network['what'])}. It has {network['parameters']:,} parameters and learned from "
        f"scratch or from the weights its recipe names, together with other networks "
        f"({_plain(training.get('method', 'unknown method'))}).",
        "",
        "| | |",
        "|---|---|",
        f"| classes | {named} |",
        f"| input | {kind} images of {height} × {width} pixels, uint8 `(batch, {channels}, {height}, {width})` |",
        f"| prepared by | {into['prepare']} |",
        f"| normalisation | `(pixel / 255 - mean) / std`, mean {_numbers(into['mean'])}, std {_numbers(into['std'])}; "
        "inside of `.onnx` and `.pt2` files |",
        f"| data | {_plain(training.get('data', 'unknown'))} |",
    ]
    for key, label in (("method", "method"), ("recipe", "recipe digest"), ("epochs", "epochs"), ("seed", "seed")):
        if training.get(key) is not None:
            lines.append(f"| {label} | {_plain(training[key])} |")
    lines += ["", "## Figures", "", *_figures(described["figures"]), "", *_files(files)]
    lines += [
        "## Intended use",
        "",
        "Naming the class of images like those it learned from, where exactly one of its classes is right. It gives "
        "probabilities for these classes to every image, also to one that shows none of them. Measure it on images of "
        "your own before you rely on it.",
        "",
        "## Licence",
        "",
        f"{_plain(license)}."
        if license
        else "Not stated. Whoever shares this file says on what terms; those of the training images, and of weights "
        "that training began with, may bind them.",
        "",
        "## Made with",
        "",
        ", ".join(f"{name} {number}" for name, number in described["versions"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _figures(found: dict[str, Any]) -> list[str]:
    if "accuracy" not in found:
        return ["None were recorded for this very network."]
    split, images = found.get("split") or "unknown", found.get("images")
    lines = [
        f"On the {split} images{f' ({images:,})' if images else ''} of the data above:",
        "",
        "| figure | value |",
        "|---|---|",
        f"| accuracy | {100 * found['accuracy']:.2f} % |",
    ]
    if found.get("top5") is not None:
        lines.append(f"| accuracy, among the first five | {100 * found['top5']:.2f} % |")
    labels = {
        "nll": "negative log-likelihood (nats)",
        "brier": "Brier score",
        "ece": "expected calibration error",
        "temperature": "temperature that calibrates it",
    }
    lines += [f"| {label} | {found[key]:.4f} |" for key, label in labels.items() if found.get(key) is not None]
    if found.get("validation_accuracy") is not None:
        lines.append(f"| validation accuracy, by which it was chosen | {100 * found['validation_accuracy']:.2f} % |")
    return lines


def _files(files: dict[str, dict[str, Any]]) -> list[str]:
    if not files:
        return []
    lines = ["## Files", "", "| file | KiB | largest difference of a logit from PyTorch |", "|---|---|---|"]
    for name, one in sorted(files.items()):
        if "difference" in one:
            cell = f"{one['difference']:.2g} on {one['checked_images']} images (allowed: {one['limit']:.2g})"
        else:
            cell = (
                f"int8: {100 * one['accuracy_int8']:.2f} % of {one['images']:,} {one['split']} images right, "
                f"{100 * one['accuracy']:.2f} % before; same class for {100 * one['agreement']:.2f} %"
            )
        lines.append(f"| `{_plain(name)}` | {one['bytes'] / 1024:.0f} | {cell} |")
    return [*lines, ""]


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _plain(value: object) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    shown = " ".join(str(value).split())
    for sign in "\\`*_[]<>|&$":
        shown = shown.replace(
            sign, f"\\{sign}" if sign not in "<>&" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}[sign]
        )
    return "".join(char if char.isprintable() else "�" for char in shown)
