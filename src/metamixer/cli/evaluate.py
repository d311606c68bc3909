"""``metamixer evaluate``: all metrics of a run, as tables and in ``evaluation.json``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from metamixer.cli.console import console, say
from metamixer.cli.options import AllowImports, DataAt, Device, RunFolder, resolved
from metamixer.core.text import counted

if TYPE_CHECKING:
    from metamixer.evaluation.localization.localize import Localization
    from metamixer.runs.run import OpenRun

_POINTERS: dict[str, Literal["LATEST", "BEST"]] = {"last": "LATEST", "best": "BEST"}
_IMAGES = {"test": "test image", "val": "validation image"}
_WHEN = {"last": "latest checkpoint", "best": "checkpoint of the best validation accuracy"}


def evaluate(
    run: RunFolder,
    split: Annotated[Literal["test", "val"], typer.Option("--split", help="Split to evaluate on.")] = "test",
    checkpoint: Annotated[
        Literal["last", "best"], typer.Option("--checkpoint", help="Checkpoint to evaluate.")
    ] = "last",
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
            "--boxes",
            metavar="FILE.csv|auto",
            help="Evaluate localization against these bounding boxes; auto: those of the data.",
        ),
    ] = None,
    held_out_boxes: Annotated[
        Path | None,
        typer.Option(
            "--held-out-boxes", metavar="FILE.csv", help="Bounding boxes of validation images, to choose thresholds."
        ),
    ] = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    allow_imports: AllowImports = False,
    quick: Annotated[bool, typer.Option("--quick", help="Report accuracy and NLL only; write nothing.")] = False,
    data: DataAt = None,
    no_check: Annotated[
        bool, typer.Option("--no-check", help="Accept data that differ from those the run was trained with.")
    ] = False,
) -> int:
    """Report accuracy, calibration, diversity and robustness of a run; write RUN/evaluation.json."""
    from metamixer.cli.evaluation_tables import show
    from metamixer.cli.progress_bars import bars
    from metamixer.cli.result_tables import report_table
    from metamixer.config.yaml_file import RecipeError
    from metamixer.report.network_tables import agreement
    from metamixer.runs.evaluate_run import FILE, assess_run
    from metamixer.runs.localize_run import localize_run
    from metamixer.runs.run import evaluate_run

    wanted = _wanted(robustness)
    pointer, check = _POINTERS[checkpoint], not no_check
    if quick:
        if wanted or cifar_c is not None or limit is not None or boxes is not None:
            raise RecipeError(
                "--quick computes accuracy and likelihood only; "
                "leave it out for --robustness, --cifar-c, --limit and --boxes"
            )
        with bars("evaluating"):
            report = evaluate_run(run, split, pointer, data=data, check=check)
        if as_json:
            _print_json({"run": str(run), "split": split, "checkpoint": checkpoint, **report.as_dict()})
            return 0
        title = f"{counted(report.images, _IMAGES[split])}, {_WHEN[checkpoint]} of {run}"
        console().print(report_table(title, report))
        say(agreement(report))
        return 0
    if boxes is None and held_out_boxes is not None:
        raise RecipeError("--held-out-boxes chooses thresholds for --boxes FILE.csv, which is missing")
    if boxes is not None and split != "test":
        raise RecipeError("--boxes measures on test images and chooses thresholds on validation images; --split test")
    with bars("reading images") as progress:

        def localize(opened: OpenRun) -> Localization:
            return localize_run(
                opened,
                None if boxes == "auto" else Path(str(boxes)),
                held_out_boxes,
                limit=limit,
                progress=partial(progress, "activation maps"),
            )

        found = assess_run(
            run,
            split,
            pointer,
            wanted,
            progress,
            limit=limit,
            cifar_c=cifar_c,
            device=resolved(device),
            localize=None if boxes is None else localize,
            data=data,
            check=check,
        )
    if as_json:
        _print_json(found.as_dict())
        return 0
    show(found)
    say(f"written: {run / FILE}")
    return 0


def _wanted(robustness: str | None) -> tuple[str, ...]:
    from metamixer.config.yaml_file import RecipeError
    from metamixer.runs.evaluate_run import ROBUSTNESS

    words = [word.strip() for word in (robustness or "").split(",") if word.strip()]
    if unknown := [word for word in words if word not in (*ROBUSTNESS, "all")]:
        raise RecipeError(f"--robustness {','.join(unknown)}: expected all, or some of {', '.join(ROBUSTNESS)}")
    return ROBUSTNESS if "all" in words else tuple(word for word in ROBUSTNESS if word in words)


def _print_json(content: object) -> None:
    console().out(json.dumps(content, indent=1), highlight=False)
