"""``metamixer export``: a trained network as a file for other systems."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from metamixer.cli.console import console, say, table
from metamixer.cli.exit_codes import told
from metamixer.cli.progress_bars import bars
from metamixer.core.text import percent
from metamixer.export import Exported, export
from metamixer.export.export import To
from metamixer.export.quantize import Quantised

_NOTABLE = 0.02  # accuracy that int8 may cost before it is worth a warning
_AGREE = 0.95  # images for which both files should name the same class


@told
def export_run(
    run: Path,
    peer: str,
    to: To,
    out: Path | None,
    quantize: Literal["int8"] | None,
    tolerance: float,
    device: str,
    license: str | None,
    push: str | None,
    data: str | None,
    check: bool,
) -> int:
    """Export, and show what was written, how close it comes, and how to use it."""
    if device == "auto":
        import torch

        device = "cuda" if to == "torch-export" and torch.cuda.is_available() else "cpu"
    with bars("reading images, writing and checking"):
        done = export(
            run,
            peer,
            to,
            out=out,
            quantize=quantize,
            tolerance=tolerance,
            device=device,
            license=license,
            push=push,
            data=data,
            check=check,
        )
    checked = done.checked
    say(done.title)
    say("written:", style="bold")
    say(f"  {done.path}  {done.kib:,.0f} KiB")
    if done.int8 is not None:
        say(f"  {done.int8.path}  {done.int8.kib_int8:,.0f} KiB")
    say(f"  {done.card}\n  {done.facts}")
    say(
        f"read back and compared with PyTorch on {checked.images} {done.split} images, in batches of "
        f"{', '.join(map(str, checked.batches))}: logits differ by {checked.difference:.2g} at most, "
        f"{checked.limit:.2g} is allowed"
    )
    if done.int8 is not None:
        _show_int8(done.int8)
    if done.pushed is not None:
        say(f"pushed to {done.pushed}")
    say("use:", style="bold")
    for line in usage(done, to):
        say(f"  {line}")
    return 0


def _show_int8(found: Quantised) -> None:
    made = table(["file", "KiB", f"accuracy, {found.images:,} {found.split} images"])
    made.add_row("float32", f"{found.kib:,.0f}", percent(found.accuracy, found.images))
    made.add_row("int8", f"{found.kib_int8:,.0f}", percent(found.accuracy_int8, found.images))
    console().print(made)
    say(
        f"Both name the same class for {percent(found.agreement, found.images)} of the images; the ranges are from "
        f"{found.calibrated} training images."
    )
    if found.accuracy - found.accuracy_int8 > _NOTABLE:
        lost = 100 * (found.accuracy - found.accuracy_int8)
        say(f"warning: int8 costs {lost:.1f} points of accuracy", style="yellow", stderr=True)
    if found.agreement < _AGREE:
        other = percent(1 - found.agreement, found.images)
        say(f"warning: int8 names another class for {other} of the images", style="yellow", stderr=True)


def usage(done: Exported, to: To) -> list[str]:
    """A few lines that use the file; ``images`` are uint8 ``(batch, channels, height, width)``."""
    path = repr(str(done.path))
    if to == "onnx":
        return [
            "import numpy as np, onnxruntime",
            f"session = onnxruntime.InferenceSession({path})",
            'logits = session.run(["logits"], {"images": images})[0]  # uint8 (batch, channels, height, width)',
            "classes = logits.argmax(1)  # names: model card, model.json or session.get_modelmeta()",
            f"or: metamixer predict {shlex.quote(str(done.path))} IMAGE_OR_FOLDER",
        ]
    if to == "torch-export":
        return [
            "import torch",
            f"network = torch.export.load({path}).module()",
            "logits = network(images)  # uint8 (batch, channels, height, width)",
            "probabilities = logits.softmax(1)",
        ]
    if to == "hub":
        return [
            "from metamixer.export.hub import HubClassifier",
            f"model = HubClassifier.from_pretrained({'REPOSITORY' if done.pushed else path})",
            "probabilities = model(images).softmax(1)  # uint8 (batch, channels, height, width)",
            "model.classifier.predict([Path('new.jpg')])",
        ]
    return [
        "from metamixer.runs.classifier import Classifier",
        f"classifier = Classifier.load(Path({path}))",
        "probabilities = classifier.predict([Path('new.jpg')])",
        f"or: metamixer predict {shlex.quote(str(done.path))} IMAGE_OR_FOLDER",
    ]
