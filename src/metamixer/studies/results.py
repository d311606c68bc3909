"""``results.jsonl``: one line for each finished run of a study. Tables are made from this file only.

Lines are identified by the checksum of their recipe, which includes the seed. A file may therefore contain lines of an
earlier version of the study, and files of several machines can be joined.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator

from metamixer.config.yaml_file import RecipeError

FILE = "results.jsonl"


class Line(BaseModel):
    """A finished run.

    Args:
        row: names on the axes of the study.
        seed: seed of training.
        digest: checksum of the recipe.
        metrics: available metrics of ``metamixer.studies.columns.METRICS``; NaN (null in the file) if not finite.
        epochs: number of epochs.
        seconds: time of the epochs including validation, without repeated epochs.
        process_seconds: time of the process, including startup and evaluation; None if there were several processes.
        cost: equal for runs whose epochs take the same time, up to method and mixer.
        threads: number of threads of torch.
        memory: peak memory of the process in bytes; None: unknown.
        machine: GPU, or processor if there is none.
        versions: versions of metamixer, torch and python.
    """

    model_config = ConfigDict(extra="allow", frozen=True)  # keeps fields of later versions

    row: dict[str, str] = {}
    seed: int
    digest: str = Field(pattern=r"^[0-9a-f]{16}$")
    metrics: dict[str, float]
    epochs: int | None = None
    seconds: float | None = None
    process_seconds: float | None = None
    cost: str | None = None
    threads: int | None = None
    memory: int | None = None
    machine: str | None = None
    versions: dict[str, str | None] = {}

    @field_validator("metrics", mode="before")
    @classmethod
    def _with_nan(cls, metrics: Any) -> Any:
        if isinstance(metrics, dict):
            return {name: math.nan if value is None else value for name, value in metrics.items()}
        return metrics

    @field_serializer("metrics")
    def _without_nan(self, metrics: dict[str, float]) -> dict[str, float | None]:
        return {name: value if math.isfinite(value) else None for name, value in metrics.items()}

    @property
    def label(self) -> str:
        """A readable name."""
        return f"{' + '.join(self.row.values()) or 'run'}, seed {self.seed}"


def read_lines(path: Path) -> list[Line]:
    """Read the lines of a file; damaged lines are left out with a warning.

    Raises:
        RecipeError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror or error}") from error
    found = []
    rows = content.split(b"\n")
    for number, row in enumerate(rows, 1):
        if not row.strip():
            continue
        if (line := _parsed(row)) is not None:
            found.append(line)
        elif number == len(rows):  # no newline: the writer was killed
            warnings.warn(f"{path}: the last line is not whole and is dropped", stacklevel=2)
        else:
            warnings.warn(f"{path}: line {number} is damaged and is left out", stacklevel=2)
    return found


def join(files: Iterable[tuple[Path, Iterable[Line]]], digests: Collection[str]) -> dict[str, Line]:
    """Join lines by checksum, one per run. Metrics are merged; if two values differ, the first one is kept.

    Args:
        files: files and their lines, in order of precedence.
        digests: checksums of the runs; other lines are ignored.

    Warns:
        UserWarning: a metric of a run has two different values; the message names both.
    """
    found: dict[str, Line] = {}
    for path, lines in files:
        for line in lines:
            if line.digest not in digests:
                continue
            first = found.setdefault(line.digest, line)
            for name in first.metrics.keys() & line.metrics.keys():
                kept, other = first.metrics[name], line.metrics[name]
                if kept != other and not (math.isnan(kept) and math.isnan(other)):
                    warnings.warn(
                        f"{path}: {line.label} ({line.digest}) has {name} {other:.6g}, not {kept:.6g} as a line before "
                        "it; the first is kept",
                        stacklevel=2,
                    )
            if line.metrics.keys() - first.metrics.keys():
                found[line.digest] = first.model_copy(update={"metrics": line.metrics | first.metrics})
    return found


def append(path: Path, lines: Iterable[Line]) -> None:
    """Append lines to a file and flush it to disk. An incomplete last line of a killed writer is removed."""
    text = "".join(json.dumps(line.model_dump(), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    if not text and not path.exists():
        return
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        last = content.rpartition(b"\n")[2]
        if last and _parsed(last) is not None:  # complete: an editor removed the newline
            text = "\n" + text
        elif last:
            file.truncate(len(content) - len(last))
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _parsed(row: bytes) -> Line | None:
    try:
        return Line.model_validate(json.loads(row))
    except (ValidationError, ValueError, RecursionError):
        return None
