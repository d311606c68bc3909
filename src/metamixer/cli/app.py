"""The command ``metamixer``: how it is called. What the commands do, ``metamixer.cli`` knows.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="metamixer",
    help="Train small networks that teach each other, and deploy the best one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # with it, --help imports half of rich and takes three times as long
    context_settings={"help_option_names": ["-h", "--help"]},
)

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE.yaml key=value", help="A recipe file, and overrides such as optim.lr=0.05."),
]
DataName = Annotated[
    str | None, typer.Option("--data", metavar="NAME|FOLDER", help="A folder of images, or a name of `list data`.")
]
Peers = Annotated[
    str | None,
    typer.Option("--peers", metavar="A,B", help="Networks to train together, such as timm:resnet18,resnet20."),
]
MixerName = Annotated[str | None, typer.Option("--mixer", metavar="NAME", help="A name of `list mixers`.")]
LossName = Annotated[str | None, typer.Option("--loss", metavar="NAME", help="A name of `list losses`.")]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the training images.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Images per step.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Random seed.")]
Precision = Annotated[
    str | None,
    typer.Option("--precision", metavar="32|bf16|16", help="Training precision; bf16 and 16 need hardware support."),
]


def _allow_imports(asked: bool) -> bool:
    if asked:
        from metamixer.core.trusted_imports import allow_all

        allow_all()
    return asked


DataAt = Annotated[
    str | None, typer.Option("--data", metavar="FOLDER", help="Read the data of the run from this folder.")
]
NoCheck = Annotated[
    bool, typer.Option("--no-check", help="Accept data that differ from those the run was trained with.")
]
AllowImports = Annotated[
    bool,
    typer.Option(
        "--allow-imports",
        callback=_allow_imports,
        help="Allow importing code named in recipe files. Only for files you trust.",
    ),
]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Resize images to this side in pixels.")]

Device = Literal["auto", "cpu", "cuda"]
Split = Literal["test", "val"]
Checkpoint = Literal["last", "best"]
OnError = Literal["skip", "stop"]
Engine = Literal["processes", "ray"]
To = Literal["onnx", "torch-export", "safetensors", "hub"]
Quantize = Literal["int8"]
Layout = Literal["auto", "classes"]


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
    """Train small networks that teach each other, and deploy the best one."""
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
    device: Annotated[Device | None, typer.Option("--device", help="Device to compute on.")] = None,
    image_size: ImageSize = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Output folder of the run. [default: a new one in runs/]"),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="FOLDER|auto", help="Resume a run; auto: resume --out if it exists."),
    ] = None,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train the same peers without distillation and mixing, to compare.")
    ] = False,
    allow_imports: AllowImports = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and the result only.")] = False,
) -> None:
    """Train a cohort, and write the network to deploy.

    Without a recipe: metamixer train --data photos/ --peers timm:resnet18,timm:mobilenetv3_small_100
    """
    from metamixer.cli.recipe_args import Sugar
    from metamixer.cli.train import train as run

    sugar = Sugar(data, peers, mixer, loss, epochs, batch_size, seed, precision, device, image_size)
    raise typer.Exit(run(words or [], sugar, out, resume, baseline, quiet))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    split: Annotated[Split, typer.Option("--split", help="Split to evaluate on.")] = "test",
    checkpoint: Annotated[Checkpoint, typer.Option("--checkpoint", help="Checkpoint to evaluate.")] = "last",
    robustness: Annotated[
        str | None,
        typer.Option(
            "--robustness",
            metavar="A,B|all",
            help="Measure robustness to corruptions, fgsm, pgd-10, pgd-20. [default: none]",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="Use at most N images for --robustness and --boxes. [default: all]"),
    ] = None,
    cifar_c: Annotated[
        Path | None, typer.Option("--cifar-c", metavar="FOLDER", help="Read corrupted images from CIFAR-10-C files.")
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            "--boxes", metavar="FILE.csv|auto", help="Evaluate localization against these bounding boxes; auto: scenes."
        ),
    ] = None,
    held_out_boxes: Annotated[
        Path | None,
        typer.Option(
            "--held-out-boxes", metavar="FILE.csv", help="Bounding boxes of validation images, to choose thresholds."
        ),
    ] = None,
    device: Annotated[Device, typer.Option("--device", help="Device to compute on.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    allow_imports: AllowImports = False,
    quick: Annotated[bool, typer.Option("--quick", help="Report accuracy and NLL only; write nothing.")] = False,
    data: DataAt = None,
    no_check: NoCheck = False,
) -> None:
    """Report accuracy, calibration, diversity and robustness of a run; write RUN/evaluation.json."""
    from metamixer.cli.evaluate import evaluate as work

    more = (robustness, limit, cifar_c, boxes, held_out_boxes)
    raise typer.Exit(work(run, split, checkpoint, *more, device, as_json, quick, data, not no_check))


@app.command()
def study(
    file: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml", help="File with methods, mixers, networks, data and seeds.")
    ],
    more: Annotated[list[Path] | None, typer.Argument(metavar="RESULTS.jsonl", hidden=True)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Output folder. [default: runs/STUDY]")
    ] = None,
    jobs: Annotated[
        str, typer.Option("--jobs", metavar="N|auto", help="Parallel runs, as far as memory allows; auto: all cores.")
    ] = "1",
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads per run. [default: the cores, divided among the runs]"),
    ] = None,
    engine: Annotated[Engine, typer.Option("--engine", help="Run on this machine, or on a Ray cluster.")] = "processes",
    address: Annotated[
        str | None, typer.Option("--address", help="Address of the Ray cluster. [default: this machine]")
    ] = None,
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
    raise typer.Exit(work(file, out, jobs, threads, engine, address, nice, files, table_only, dry_run))


@app.command()
def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_OR_RUN", help="A run's folder, or a .safetensors or .onnx file.")
    ],
    paths: Annotated[list[str], typer.Argument(metavar="PATHS...", help="Image files, folders, quoted globs.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.csv|FILE.json", help="Write the predictions to a file.")
    ] = None,
    top: Annotated[int | None, typer.Option("--top", help="Number of top classes to show. [default: all]")] = None,
    allow_imports: AllowImports = False,
    on_error: Annotated[OnError, typer.Option("--on-error", help="What to do with unreadable files.")] = "skip",
    device: Annotated[Device, typer.Option("--device", help="Device to compute on.")] = "auto",
) -> None:
    """Classify images."""
    from metamixer.cli.predict import predict as work

    raise typer.Exit(work(model, paths, out, top, on_error, device))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    peer: Annotated[
        str, typer.Option("--peer", metavar="best|N|leader|ensemble", help="Network to export; best: the deployed one.")
    ] = "best",
    to: Annotated[To, typer.Option("--to", help="File format; hub: a Hugging Face folder.")] = "onnx",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="A file or folder. [default: in RUN/export/]")
    ] = None,
    quantize: Annotated[Quantize | None, typer.Option("--quantize", help="With onnx, also write an int8 file.")] = None,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Largest accepted difference of a logit from PyTorch.")
    ] = 1e-4,
    device: Annotated[Device, typer.Option("--device", help="Device of a torch-export file.")] = "cpu",
    license: Annotated[
        str | None, typer.Option("--license", help="License in the model card, such as apache-2.0.")
    ] = None,
    allow_imports: AllowImports = False,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="With hub, push the folder to this repository.")
    ] = None,
    data: DataAt = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Read no data; verify on random images. For runs whose data are gone.")
    ] = False,
) -> None:
    """Export a trained network, and verify its outputs."""
    from metamixer.cli.export import export_run as work

    raise typer.Exit(work(run, peer, to, out, quantize, tolerance, device, license, push, data, not no_check))


@app.command()
def preview(
    words: Words = None,
    data: DataName = None,
    peers: Peers = None,
    mixer: MixerName = None,
    image_size: ImageSize = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE.png", help="Output file.")] = Path("preview.png"),
    allow_imports: AllowImports = False,
    images: Annotated[int, typer.Option("--images", min=2, max=16, help="Number of images.")] = 8,
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0,
) -> None:
    """Draw mixed images of your own data."""
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
def check(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of images.")],
    layout: Annotated[
        Layout,
        typer.Option("--layout", help="Find splits by their names (auto), or take each folder for a class (classes)."),
    ] = "auto",
) -> None:
    """Decode all images of a folder, and list the unreadable ones."""
    from metamixer.cli.inspect_data import check as work

    raise typer.Exit(work(folder, layout))


@app.command()
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|STUDY...", help="Folders of runs or studies; several runs are compared."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="Output file.")] = Path("report.html"),
    static: Annotated[
        Path | None,
        typer.Option("--static", metavar="FOLDER", help="Also write the plots to this folder, as PNG and SVG."),
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Title of the page. [default: the name of the run]")] = "",
    allow_imports: AllowImports = False,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Show images of the data.")] = True,
    data: DataAt = None,
) -> None:
    """Write an HTML report of runs and studies; it works offline."""
    from metamixer.cli.report import report as work

    raise typer.Exit(work(paths, out, static, title, pictures, data))


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):  # a class may be called 猫, and a file anything
        if isinstance(stream, TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app()
