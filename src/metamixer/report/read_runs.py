"""Read the files of runs and studies; notes list what cannot be read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from metamixer.config.yaml_file import RecipeError, read_yaml
from metamixer.core.text import counted
from metamixer.evaluation.report import Report, read_report
from metamixer.report.schema import Ended, Environment, Epoch
from metamixer.report.tables import Table, of_values

_LARGEST = 200_000_000  # the largest accepted JSON file in bytes
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class RunFiles:
    """The content of a run folder.

    Args:
        folder: the run folder.
        name: display name, unique on the page.
        recipe: the values in ``recipe.yaml``. Nothing is built from them, so code that it names is not imported.
        yaml: the text of ``recipe.yaml``.
        epochs: the lines of ``metrics.jsonl``.
        ended, environment, evaluation: content of ``report.json``, ``environment.json`` and ``evaluation.json``; None:
            missing.
        baseline: the run in ``baseline/``.
        notes: what is missing or damaged, and what to do about it.
    """

    folder: Path
    name: str
    recipe: dict[str, Any]
    yaml: str
    epochs: tuple[Epoch, ...]
    ended: Ended | None
    environment: Environment | None
    evaluation: Report | None
    baseline: RunFiles | None
    notes: tuple[str, ...]

    def setting(self, *path: str) -> Any:
        """A value of the recipe; None if it is not set."""
        value: Any = self.recipe
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    @property
    def peers(self) -> tuple[str, ...]:
        """The names of the peers, as written by the run."""
        validated = [each.val for each in self.epochs if each.val is not None]
        if self.ended and self.ended.last_epoch.peers:
            return tuple(score.name for score in self.ended.last_epoch.peers)
        if validated:
            return tuple(score.name for score in validated[-1].peers)
        peers = self.setting("peers")
        names = [one.get("name", "?") if isinstance(one, dict) else one for one in peers] if peers else []
        return tuple(f"{index} {name}" for index, name in enumerate(names))


@dataclass(frozen=True)
class StudyFiles:
    """The content of a study folder: tables, all results, and the text of ``study.yaml``."""

    folder: Path
    name: str
    yaml: str
    table: Table | None
    pooled: Table | None
    results: Any
    notes: tuple[str, ...]


def read_all(paths: Sequence[str | Path]) -> tuple[list[RunFiles], list[StudyFiles]]:
    """Read the runs and studies in the given folders, in order.

    Raises:
        RecipeError: there are no folders, or one is neither a run nor a study, or its recipe is damaged.
    """
    if not paths:
        raise RecipeError("a report needs the folder of a run or of a study")
    runs: list[RunFiles] = []
    studies: list[StudyFiles] = []
    folders = [Path(path) for path in paths]
    short = [folder.resolve().name for folder in folders]
    for folder, name in zip(folders, short, strict=True):
        shown = name if name and short.count(name) == 1 else str(folder)
        if (folder / "study.yaml").is_file():
            studies.append(read_study(folder, shown))
        elif (folder / "recipe.yaml").is_file():
            runs.append(read_run(folder, shown))
        elif not folder.exists():
            raise RecipeError(f"{folder}: no such folder; expected the folder of a run or of a study")
        else:
            raise RecipeError(f"{folder} is neither a run nor a study: it has neither recipe.yaml nor study.yaml")
    return runs, studies


def read_run(folder: Path, name: str, *, is_baseline: bool = False) -> RunFiles:
    """Read a run folder.

    Raises:
        RecipeError: ``recipe.yaml`` is damaged. Notes list all other missing or damaged files.
    """
    recipe = read_yaml(folder / "recipe.yaml")
    notes: list[str] = []
    command = shlex.quote(str(folder))
    ended = _read(folder / "report.json", Ended.model_validate, notes)
    if ended is None and not is_baseline and not (folder / "report.json").exists():
        notes.append(f"The training has not ended. Resume it with: metamixer train --resume {command}")
    evaluation = _read(folder / "evaluation.json", read_report, notes)
    baseline = None
    if (folder / "baseline" / "recipe.yaml").is_file():
        try:
            baseline = read_run(folder / "baseline", "baseline", is_baseline=True)
            notes += [f"Baseline: {note}" for note in baseline.notes]
        except RecipeError as error:
            notes.append(f"The baseline is left out: {error}")
    return RunFiles(
        folder=folder,
        name=name,
        recipe=recipe,
        yaml=_text(folder / "recipe.yaml"),
        epochs=tuple(_epochs(folder / "metrics.jsonl", notes)),
        ended=ended,
        environment=_read(folder / "environment.json", Environment.model_validate, notes),
        evaluation=evaluation,
        baseline=baseline,
        notes=tuple(notes),
    )


def read_study(folder: Path, name: str) -> StudyFiles:
    """Read a study folder; notes list missing or damaged files."""
    notes: list[str] = []
    table, pooled, results = None, None, None
    path = folder / "results.json"
    if path.is_file():
        try:
            results = _json(path)
            table = study_table(results)
            pooled = study_table(results.get("pooled")) if isinstance(results, dict) else None
            if table is None:
                notes.append("results.json has no table.")
        except (OSError, ValueError) as error:
            notes.append(f"results.json cannot be read: {short(error)}")
    else:
        notes.append(
            "The study has no results yet: results.json is missing. It is written by: metamixer study "
            f"{shlex.quote(str(folder / 'study.yaml'))} --out {shlex.quote(str(folder))} --table-only"
        )
    return StudyFiles(folder, name, _text(folder / "study.yaml"), table, pooled, results, tuple(notes))


def study_table(results: Any) -> Table | None:
    """The table in the results of a study: the object ``table`` with columns, rows (lists), caption and notes.

    Raises:
        ValueError: it has another structure.
    """
    found = results.get("table") if isinstance(results, dict) else None
    if found is None:
        return None
    columns, rows = (found.get(key) if isinstance(found, dict) else None for key in ("columns", "rows"))
    if not isinstance(columns, list) or not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise ValueError("its table is not an object with columns and rows")
    if wrong := [len(row) for row in rows if len(row) != len(columns)]:
        raise ValueError(f"its table has {len(columns)} columns, and a row of {wrong[0]} cells")
    said = found.get("notes")
    note = " ".join(map(str, said)) if isinstance(said, list) else ""
    return of_values(str(found.get("caption") or "Results"), columns, rows, note)


def _epochs(path: Path, notes: list[str]) -> list[Epoch]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {short(error)}")
        lines = []
    found: list[Epoch] = []
    broken = 0
    for line in lines:
        try:
            found.append(Epoch.model_validate(json.loads(line)))
        except (ValueError, RecursionError):  # such as the last line of a killed process
            broken += 1
    if broken:
        notes.append(f"{path.name}: {broken} of {counted(len(lines), 'line')} left out of the curves: not readable.")
    return sorted(found, key=lambda one: one.epoch)


def _read(path: Path, read: Callable[[Any], _Read], notes: list[str]) -> _Read | None:
    if not path.exists():
        return None
    try:
        return read(_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        notes.append(f"{path.name} is left out: {place or 'its content'}: {first['msg']}")
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read: {short(error)}")
    return None


def _json(path: Path) -> Any:
    if (size := path.stat().st_size) > _LARGEST:
        raise ValueError(f"it has {size} bytes, more than {_LARGEST}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"cannot be read: {short(error)}"


def short(error: Exception) -> str:
    """The message of an exception on one line."""
    return " ".join(str(error).split())[:300]
