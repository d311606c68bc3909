"""The state of a run folder, and its line for ``results.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metamixer.core.files import read_mapping
from metamixer.studies.columns import read_metrics
from metamixer.studies.estimate import cost_of
from metamixer.studies.results import Line
from metamixer.studies.study_file import Cell, Measure


def trained(folder: Path) -> bool:
    """Whether training has ended."""
    return bool(read_mapping(folder / "report.json"))


def finished(folder: Path, measure: Measure) -> bool:
    """Whether the run has ended and has all measurements."""
    if not trained(folder) or not (evaluation := _evaluation(folder)):
        return False
    robustness = evaluation.get("robustness") or {}
    parts = {"localization"} if evaluation.get("localization") else set()
    found = parts | ({"corruptions"} & set(robustness)) | set(robustness.get("attacks") or {})
    return {*measure.robustness, *(["localization"] if measure.localization else [])} <= found


def line_of(cell: Cell, folder: Path, measure: Measure, *, took: float = 0.0, memory: int | None = None) -> Line:
    """The line of a finished run.

    Args:
        cell: the run.
        folder: the run folder.
        measure: measurements of the study.
        took: seconds of its last process; 0: unknown.
        memory: peak memory of that process in bytes.
    """
    epochs = _epochs(folder / "metrics.jsonl")
    found = {
        "report": read_mapping(folder / "report.json"),
        "evaluation": _evaluation(folder),
        "epoch": epochs[-1] if epochs else {},
    }
    environment = read_mapping(folder / "environment.json")
    versions = environment.get("versions") or {}
    seconds = sum(epoch.get("seconds", 0.0) for epoch in epochs)
    return Line(
        row=dict(cell.row),
        seed=cell.seed,
        digest=cell.digest,
        metrics=read_metrics(found),
        epochs=cell.recipe.train.epochs,
        seconds=round(seconds, 3),
        process_seconds=round(took, 3) if took >= seconds else None,  # else it did not do all epochs
        cost=cost_of(cell.recipe, measure),
        threads=environment.get("threads"),
        memory=memory,
        machine=environment.get("gpu") or environment.get("processor"),
        versions={
            "metamixer": versions.get("metamixer"),
            "torch": versions.get("torch"),
            "python": environment.get("python"),
        },
    )


def _evaluation(folder: Path) -> dict[str, Any]:
    """The evaluation of the last weights on the test split; empty if ``metamixer evaluate`` has replaced the file."""
    found = read_mapping(folder / "evaluation.json")
    return found if (found.get("split"), found.get("checkpoint")) == ("test", "last") else {}


def _epochs(path: Path) -> list[dict[str, Any]]:
    try:
        rows = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for row in rows:
        try:
            found.append(json.loads(row))
        except ValueError:  # the last line of a killed process
            continue
    return found
