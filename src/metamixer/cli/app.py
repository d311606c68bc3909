"""The command ``metamixer``: how it is called. What the commands do, ``metamixer.cli`` knows.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="metamixer",
    help="Train small networks that teach each other, and get one that is accurate and ready to use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with it, --help imports half of rich and takes three times as long
    context_settings={"help_option_names": ["-h", "--help"]},
)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE.yaml key=value", help="A recipe, and changes such as optim.lr=0.05."),
]
DataName = Annotated[
    str | None, typer.Option("--data", metavar="NAME|FOLDER", help="A folder of images, or a name of `list data`.")
]
Peers = Annotated[
    str | None, typer.Option("--peers", metavar="A,B", help="Networks that learn together: timm:resnet18,resnet20.")
]
MixerName = Annotated[str | None, typer.Option("--mixer", metavar="NAME", help="A name of `list mixers`.")]
LossName = Annotated[str | None, typer.Option("--loss", metavar="NAME", help="A name of `list losses`.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="How many times the images are seen.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images in a step.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of everything random.")]
Precision = Annotated[str | None, typer.Option("--precision", metavar="32|bf16", help="bf16 is faster where it can.")]


def _allow_imports(asked: bool) -> bool:
    if asked:
        from metamixer.core.trusted_imports import allow_all

        allow_all()
    return asked


AllowImports = Annotated[
    bool,
    typer.Option(
        "--allow-imports",
        callback=_allow_imports,
        help="Run the code that files name as package.module:Name. Trust them first.",
    ),
]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="The side in pixels that images are resized to.")]


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Split(StrEnum):
    """Images of a run."""

    test = "test"
    val = "val"


class Checkpoint(StrEnum):
    """Of a run."""

    last = "last"
    best = "best"


class OnError(StrEnum):
    """At a file that cannot be read."""

    skip = "skip"
    stop = "stop"


def _version(asked: bool) -> None:
    if asked:
        from metamixer import __version__

        typer.echo(f"metamixer {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train small networks that teach each other, and get one that is accurate and ready to use."""
    from metamixer.core.trusted_imports import scope

    context.with_resource(scope())


@app.command()
def train(
    words: Words = None,
    data: DataName = None,
    peers: Peers = None,
    mixer: MixerName = None,
    loss: LossName = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    precision: Precision = None,
    device: Annotated[Device | None, typer.Option("--device", help="Where to compute.")] = None,
    image_size: ImageSize = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Of the run. [default: a new one in runs/]")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="FOLDER|auto", help="Go on with a run; auto: with --out, if it has begun."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="First train the same peers without teaching and mixing, to compare.")
    ] = False,
    allow_imports: AllowImports = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and the result only.")] = False,
) -> None:
    """Train a cohort by a recipe, and write the network to deploy.

    Without a recipe: metamixer train --data photos/ --peers timm:resnet18,timm:mobilenetv3_small_100
    """
    from metamixer.cli.recipe_args import Sugar
    from metamixer.cli.train import train as run

    where = device.value if device else None
    sugar = Sugar(data, peers, mixer, loss, epochs, batch_size, seed, precision, where, image_size)
    raise typer.Exit(run(words or [], sugar, out, resume, baseline, quiet))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    split: Annotated[Split, typer.Option("--split", help="Which of its images.")] = Split.test,
    checkpoint: Annotated[Checkpoint, typer.Option("--checkpoint", help="Which of its weights.")] = Checkpoint.last,
    robustness: Annotated[
        str | None,
        typer.Option("--robustness", metavar="A,B|all", help="Of corruptions, fgsm, pgd-10, pgd-20. [default: none]"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="So many images for --robustness and --boxes. [default: all]"),
    ] = None,
    cifar_c: Annotated[
        Path | None, typer.Option("--cifar-c", metavar="FOLDER", help="CIFAR-10-C, instead of corrupting here.")
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option("--boxes", metavar="FILE.csv|auto", help="Whether the networks find the objects; auto: scenes."),
    ] = None,
    held_out_boxes: Annotated[
        Path | None, typer.Option("--held-out-boxes", metavar="FILE.csv", help="Of validation images.")
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.auto,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
    allow_imports: AllowImports = False,
    quick: Annotated[bool, typer.Option("--quick", help="Accuracy and likelihood alone; nothing is written.")] = False,
) -> None:
    """Show how right, how sure, how different and how robust a run's networks are; write RUN/evaluation.json."""
    from metamixer.cli.evaluate import evaluate as work

    more = (robustness, limit, cifar_c, boxes, held_out_boxes)
    raise typer.Exit(work(run, split.value, checkpoint.value, *more, device.value, as_json, quick))


class Engine(StrEnum):
    """Who runs the runs of a study."""

    processes = "processes"
    ray = "ray"


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Methods, mixers, networks, data and seeds.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="RESULTS.jsonl", hidden=True)] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="[default: runs/STUDY]")] = None,
    jobs: Annotated[
        str, typer.Option("--jobs", metavar="N|auto", help="Runs side by side, while memory allows; auto: all cores.")
    ] = "1",
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of each run. [default: shared out]")] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="Here, or on a Ray cluster.")] = Engine.processes,
    address: Annotated[str | None, typer.Option("--address", help="Of a Ray cluster. [default: this machine]")] = None,
    nice: Annotated[
        int, typer.Option("--nice", metavar="N", min=0, max=19, help="Lower the priority of the runs by N.")
    ] = 0,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="FILE...", help="Take over finished runs from other results.jsonl files."),
    ] = None,
    table_only: Annotated[bool, typer.Option("--table-only", help="Write the table, run nothing.")] = False,
    allow_imports: AllowImports = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and their time, run nothing.")] = False,
) -> None:
    """Compare methods over seeds; a study that was stopped is resumed."""
    if more and not results:
        raise typer.BadParameter(f"{more[0]}: a second file is accepted after --results only")
    from metamixer.cli.study import study as work

    files = [*(results or ()), *(more or ())]
    raise typer.Exit(work(file, out, jobs, threads, engine.value, address, nice, files, table_only, dry_run))


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, or a .safetensors or .onnx file.")
    ],
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Image files, folders, quoted globs.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.csv|FILE.json", help="Instead of the terminal.")
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", help="Only so many of the likeliest classes. [default: all]")
    ] = None,
    allow_imports: AllowImports = False,
    on_error: Annotated[OnError, typer.Option("--on-error", help="At a file that cannot be read.")] = OnError.skip,
    device: Annotated[Device, typer.Option("--device", help="Where to compute.")] = Device.auto,
) -> None:
    """Name the classes of images, with probabilities."""
    from metamixer.cli.predict import predict as work

    raise typer.Exit(work(model, paths, out, top, on_error.value, device.value))


class To(StrEnum):
    """A kind of exported file."""

    onnx = "onnx"
    torch_export = "torch-export"
    safetensors = "safetensors"
    hub = "hub"


class Quantize(StrEnum):
    """Of an exported file."""

    int8 = "int8"


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    peer: Annotated[
        str, typer.Option("--peer", metavar="best|N|leader|ensemble", help="Which network; best: the deployed one.")
    ] = "best",
    to: Annotated[To, typer.Option("--to", help="What kind of file; hub: a Hugging Face folder.")] = To.onnx,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="A file or folder. [default: in RUN/export/]")
    ] = None,
    quantize: Annotated[
        Quantize | None, typer.Option("--quantize", help="With onnx, also a file of 8-bit integers.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="The largest difference of a logit from PyTorch's.")
    ] = 1e-4,
    device: Annotated[Device, typer.Option("--device", help="What a torch-export file is made for.")] = Device.cpu,
    license: Annotated[str | None, typer.Option("--license", help="For the model card, such as apache-2.0.")] = None,
    allow_imports: AllowImports = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="With hub, push the folder there.")
    ] = None,
) -> None:
    """Write a trained network for other systems, and check that it gives the same answers."""
    from metamixer.cli.export import export_run as work

    raise typer.Exit(
        work(run, peer, to.value, out, quantize.value if quantize else None, tolerance, device.value, license, push)
    )


@app.command()
def preview(
    words: Words = None,
    data: DataName = None,
    peers: Peers = None,
    mixer: MixerName = None,
    image_size: ImageSize = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="The picture.")] = Path("preview.png"),
    allow_imports: AllowImports = False,
    images: Annotated[int, typer.Option("--images", min=2, max=16, help="How many images.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Of the images and of what is drawn.")] = 0,
) -> None:
    """Draw what the mixer makes of your own images."""
    from metamixer.cli.inspect_data import preview as work
    from metamixer.cli.recipe_args import Sugar

    sugar = Sugar(data=data, peers=peers, mixer=mixer, image_size=image_size)
    raise typer.Exit(work(words or [], sugar, out, images, seed))


@app.command("list")
def list_names(
    what: Annotated[str | None, typer.Argument(metavar="[networks|mixers|losses|data|settings]")] = None,
    only: Annotated[str | None, typer.Argument(metavar="[SECTION|METHOD]", help="Settings of train, dml, ...")] = None,
) -> None:
    """List the names and settings that a recipe can have."""
    from metamixer.cli.list_names import show_names

    raise typer.Exit(show_names(what, only))


@app.command()
def check(folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.")]) -> None:
    """Decode a folder's images, and name those that cannot be read."""
    from metamixer.cli.inspect_data import check as work

    raise typer.Exit(work(folder))


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN|STUDY...", help="Folders; several runs are compared.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="The page.")] = Path("report.html"),
    static: Annotated[
        Path | None, typer.Option("--static", metavar="FOLDER", help="Also write the plots there, as PNG and SVG.")
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Of the page. [default: the name of the run]")] = "",
    allow_imports: AllowImports = False,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Show images of the data, where they can be read.")
    ] = True,
) -> None:
    """Write runs and studies as one HTML page that needs no network."""
    from metamixer.cli.report import report as work

    raise typer.Exit(work(paths, out, static, title, pictures))


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):  # a class may be called 猫, and a file anything
        if isinstance(stream, TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app()
