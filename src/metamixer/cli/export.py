"""``metamixer export``: export a trained network for other systems."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from metamixer.cli.console import console, say, table
from metamixer.cli.options import AllowImports, DataAt, DeviceName, RunFolder, resolved
from metamixer.core.text import counted, percent

if TYPE_CHECKING:
    from metamixer.export import Exported
    from metamixer.export.quantize import Quantised

To = Literal["onnx", "torch-export", "safetensors", "hub"]

_NOTABLE = 0.02  # loss of accuracy by int8 above which a warning is printed
_AGREE = 0.95  # share of images for which both files should predict the same class


def export(
    run: RunFolder,
    peer: Annotated[
        str, typer.Option("--peer", metavar="best|N|leader|ensemble", help="Network to export; best: the deployed one.")
    ] = "best",
    to: Annotated[To, typer.Option("--to", help="File format; hub: a Hugging Face folder.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="A file or folder. [default: in RUN/export/]")
    ] = None,
    quantize: Annotated[
        Literal["int8"] | None, typer.Option("--quantize", help="With onnx, also write an int8 file.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Largest accepted difference of a logit from PyTorch.")
    ] = 1e-4,
    device: Annotated[DeviceName, typer.Option("--device", help="Device of a torch-export file.")] = "cpu",
    license: Annotated[
        str | None, typer.Option("--license", help="License in the model card, such as apache-2.0.")
    ] = None,
    allow_imports: AllowImports = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="With hub, push the folder to this repository.")
    ] = None,
    data: DataAt = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Read no data; verify on random images. For runs whose data are missing.")
    ] = False,
) -> int:
    """Export a trained network, and verify its outputs."""
    from metamixer.cli.progress_bars import bars
    from metamixer.export.export import export as write

    if device == "auto" and to != "torch-export":
        device = "cpu"
    with bars("reading images, writing and checking"):
        done = write(
            run,
            peer,
            to,
            out=out,
            quantize=quantize,
            tolerance=tolerance,
            device=resolved(device),
            license=license,
            push=push,
            data=data,
            check=not no_check,
        )
    checked = done.checked
    say(done.title)
    say("written:", style="bold")
    say(f"  {done.path}  {done.kib:,.0f} KiB")
    if done.int8 is not None:
        say(f"  {done.int8.path}  {done.int8.kib_int8:,.0f} KiB")
    say(f"  {done.card}\n  {done.facts}")
    say(
        f"read back and compared with PyTorch on {counted(checked.images, f'{done.split} image')}, in batches of "
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
    made = table(["file", "KiB", f"accuracy, {counted(found.images, f'{found.split} image')}"])
    made.add_row("float32", f"{found.kib:,.0f}", percent(found.accuracy, found.images))
    made.add_row("int8", f"{found.kib_int8:,.0f}", percent(found.accuracy_int8, found.images))
    console().print(made)
    say(
        f"Both predict the same class for {percent(found.agreement, found.images)} of the images; the ranges are from "
        f"{counted(found.calibrated, 'training image')}."
    )
    if found.accuracy - found.accuracy_int8 > _NOTABLE:
        lost = 100 * (found.accuracy - found.accuracy_int8)
        say(f"warning: int8 costs {lost:.1f} points of accuracy", style="yellow", stderr=True)
    if found.agreement < _AGREE:
        other = percent(1 - found.agreement, found.images)
        say(f"warning: int8 predicts another class for {other} of the images", style="yellow", stderr=True)


def usage(done: Exported, to: To) -> list[str]:
    """A few lines of code that use the file; ``images`` are uint8 ``(batch, channels, height, width)``."""
    path = repr(str(done.path))
    if to == "onnx":
        return [
            "import numpy as np, onnxruntime",
            f"session = onnxruntime.InferenceSession({path})",
            'logits = session.run(["logits"], {"images": images})[0]  # uint8 (batch, channels, height, width)',
            "classes = logits.argmax(1)  # names, and how images are prepared: model card, session.get_modelmeta()",
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
