"""``results.jsonl``: one line for each finished run of a study. Tables are made from it alone.

Lines are found by the checksum of their recipe, which holds the seed. So a file may have lines of an earlier state of
the study, and files of several machines can be joined.
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
    """A run that has ended.

    Args:
        row: its names on the study's axes.
        seed: of training.
        digest: the checksum of its recipe.
        metrics: all of ``metamixer.studies.columns.METRICS`` that it has; NaN, in the file null, where not finite.
        epochs: that it trained.
        seconds: of its epochs with their validation, without what was lost when it was stopped.
        process_seconds: of its process, with start and measurements; None where it took several.
        cost: runs with the same value take the same time for an epoch, up to method and mixer.
        threads: of torch.
        memory: the largest of its process, in bytes; None: not known.
        machine: its GPU, or its processor.
        versions: of metamixer, torch and python.
    """

    model_config = ConfigDict(extra="allow", frozen=True)  # what a later version adds is kept

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
    """The lines of a file, without those that are damaged: each of them is named in a warning.

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
        elif number == len(rows):  # no end of line: whoever wrote it was killed
            warnings.warn(f"{path}: the last line is not whole and is dropped", stacklevel=2)
        else:
            warnings.warn(f"{path}: line {number} is damaged and is left out", stacklevel=2)
    return found


def join(files: Iterable[tuple[Path, Iterable[Line]]], digests: Collection[str]) -> dict[str, Line]:
    """The lines of some runs by checksum, each run once. Metrics add up; where two values differ the first is kept.

    Args:
        files: lines, and where they come from. The first file counts most.
        digests: of the runs that are asked for; lines of others are passed over.

    Warns:
        UserWarning: a metric of a run has two values; both are named.
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
    """Put lines at the end of a file, on the disk when this returns. What is left of a killed writer's line goes."""
    text = "".join(json.dumps(line.model_dump(), ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    if not text and not path.exists():
        return
    with path.open("ab+") as file:
        file.seek(0)
        content = file.read()
        last = content.rpartition(b"\n")[2]
        if last and _parsed(last) is not None:  # whole: somebody's editor wrote it
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
