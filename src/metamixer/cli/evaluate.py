"""``metamixer evaluate``: every metric of a run, in tables and in ``evaluation.json``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from metamixer.cli.console import console, report_table, say, titled
from metamixer.cli.evaluation_tables import show
from metamixer.cli.exit_codes import told
from metamixer.cli.progress_bars import bars
from metamixer.config.yaml_file import RecipeError
from metamixer.evaluation.localization.localize import Localization
from metamixer.evaluation.report import Report
from metamixer.runs.evaluate_run import FILE, ROBUSTNESS, assess_run
from metamixer.runs.localize_run import localize_run
from metamixer.runs.run import OpenRun, evaluate_run


@told
def evaluate(
    folder: Path,
    split: Literal["test", "val"],
    checkpoint: Literal["last", "best"],
    robustness: str | None,
    limit: int | None,
    cifar_c: Path | None,
    boxes: str | None,
    held_out_boxes: Path | None,
    device: str,
    as_json: bool,
    quick: bool,
    data: str | None,
    check: bool,
) -> int:
    """Evaluate a run; show the metrics and write them into its folder."""
    wanted = _wanted(robustness)
    pointer: Literal["LATEST", "BEST"] = "LATEST" if checkpoint == "last" else "BEST"
    if quick:
        if wanted or cifar_c is not None or limit is not None or boxes is not None:
            raise RecipeError(
                "--quick computes accuracy and likelihood alone; "
                "leave it out for --robustness, --cifar-c, --limit and --boxes"
            )
        with bars("evaluating"):
            report = evaluate_run(folder, split, pointer, data=data, check=check)
        return _quick(report, folder, split, pointer, as_json)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if boxes is None and held_out_boxes is not None:
        raise RecipeError("--held-out-boxes chooses thresholds for --boxes FILE.csv, which is missing")
    if boxes is not None and split != "test":
        raise RecipeError("--boxes measures on test images and chooses thresholds on validation images; --split test")
    with bars("reading images") as progress:

        def localize(run: OpenRun) -> Localization:
            return localize_run(
                run,
                None if boxes == "auto" else Path(str(boxes)),
                held_out_boxes,
                limit=limit,
                progress=None if progress is None else partial(progress, "activation maps"),
            )

        found = assess_run(
            folder,
            split,
            pointer,
            wanted,
            progress,
            limit=limit,
            cifar_c=cifar_c,
            device=device,
            localize=None if boxes is None else localize,
            data=data,
            check=check,
        )
    if as_json:
        console().out(json.dumps(found.as_dict(), indent=1), highlight=False)
        return 0
    show(found, f"{_WHAT[split]} images, {_WHEN[pointer]} of {folder}")
    say(f"written: {folder / FILE}")
    return 0


_WHAT = {"test": "test", "val": "validation"}
_WHEN = {"LATEST": "latest checkpoint", "BEST": "checkpoint of the best validation accuracy"}


def _wanted(robustness: str | None) -> tuple[str, ...]:
    words = [word.strip() for word in (robustness or "").split(",") if word.strip()]
    if unknown := [word for word in words if word not in (*ROBUSTNESS, "all")]:
        raise RecipeError(f"--robustness {','.join(unknown)}: expected all, or some of {', '.join(ROBUSTNESS)}")
    return ROBUSTNESS if "all" in words else tuple(word for word in ROBUSTNESS if word in words)


def _quick(
    report: Report, folder: Path, split: Literal["test", "val"], pointer: Literal["LATEST", "BEST"], as_json: bool
) -> int:
    """Accuracy and likelihood alone, as after each epoch of a training; nothing is written."""
    if as_json:
        checkpoint = "last" if pointer == "LATEST" else "best"
        found = {"run": str(folder), "split": split, "checkpoint": checkpoint, **report.as_dict()}
        console().out(json.dumps(found, indent=1), highlight=False)
        return 0
    title = f"{report.images:,} {_WHAT[split]} images, {_WHEN[pointer]} of {folder}"
    console().print(titled(title, report_table(report)))
    say(f"All peers name the same class for {100 * report.agreement:.1f} % of the images.")
    return 0
