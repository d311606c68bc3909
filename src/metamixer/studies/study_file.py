"""Study files: methods x mixers x networks x data x seeds, and the content of their table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError, as_yaml, read_yaml, with_changes

AXES = {"methods": "loss", "mixers": "mixer", "networks": "peers", "data": "data", "settings": None}
"""The axes, and the section of a recipe that each changes; ``settings`` can change any."""

Row = tuple[tuple[str, str], ...]
"""Names on the axes of a study, in the order of ``AXES``."""

_TITLES = {"methods": "method", "mixers": "mixer", "networks": "networks", "data": "data", "settings": "settings"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(_Section):
    """A published result, shown in a separate column.

    Args:
        where: the rows, by names on some axes: ``{methods: dml, data: cifar100}``.
        figure: the result as text: ``75.0 ± 0.2``.
        source: the publication.
    """

    where: dict[str, str]
    figure: str
    source: str


class Measure(_Section):
    """Measurements after training, in addition to accuracy, likelihood and calibration.

    Args:
        robustness: any of ``corruptions``, ``fgsm``, ``pgd-10``, ``pgd-20``.
        localization: evaluate activation maps against boxes, for data that have them (``scenes:``, ``test_boxes.csv``).
        limit: number of test images for robustness; None: all.
    """

    robustness: tuple[Literal["corruptions", "fgsm", "pgd-10", "pgd-20"], ...] = ()
    localization: bool = False
    limit: int | None = Field(None, ge=1)


class Pool(_Section):
    """Comparison of rows pooled over all names of an axis.

    Args:
        over: the axis.
        of: the rows to compare, by names on other axes; empty: all rows.
        against: the rows to compare them with, by the names in which they differ.
    """

    over: str = "data"
    of: dict[str, str] = {}
    against: list[dict[str, str]] = Field(min_length=1)


class StudyFile(_Section):
    """The content of a study file.

    Args:
        title: title of the table.
        recipe: recipe of all runs: a mapping, or the path of a recipe file relative to the study file.
        changes: overrides of the recipe, as on the command line.
        methods, mixers, networks, data: axes: names of rows with their changes. A value is a name, the content of a
            section, or a list of overrides (``[optim.lr=0.1]``); a list of names (``[dml, kdcl]``) uses these names.
        settings: an axis of lists of overrides, for changes of other sections, such as ``[train.epochs=400]``.
        exclude: combinations to leave out, by names on some axes.
        seeds: seeds of training; every row has all of them, and differences are taken for each seed.
        baseline: the row to compare with, by names on some axes; rows that differ in other axes are compared with the
            baseline that equals them there.
        metrics: columns, from ``metamixer.studies.columns.METRICS``; the former key is ``figures``.
        compare: columns to compare with the baseline; None: the first one.
        pool: see :class:`Pool`; the same columns are compared.
        measure: see :class:`Measure`.
        published: see :class:`Published`.
        confidence: confidence level of the intervals.
    """

    title: str = "Study"
    recipe: str | dict[str, Any] = {}
    changes: list[str] = []
    methods: list[str] | dict[str, Any] = {}
    mixers: list[str] | dict[str, Any] = {}
    networks: list[str] | dict[str, Any] = {}
    data: list[str] | dict[str, Any] = {}
    settings: dict[str, list[str]] = {}
    exclude: list[dict[str, str]] = []
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    baseline: dict[str, str] = {}
    metrics: list[str] = Field(
        ["accuracy", "deployed", "ensemble", "nll"],
        min_length=1,
        validation_alias=AliasChoices("metrics", "figures"),  # the second is the key of earlier versions
    )
    compare: list[str] | None = None
    pool: Pool | None = None
    measure: Measure = Measure()
    published: list[Published] = []
    confidence: float = Field(0.95, gt=0, lt=1)

    @property
    def compared(self) -> list[str]:
        """The columns that are compared."""
        return self.metrics[:1] if self.compare is None else self.compare

    def axis(self, name: str) -> dict[str, Any]:
        """The rows of an axis, by name."""
        values = getattr(self, name)
        return dict(values) if isinstance(values, dict) else {value: value for value in values}


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a study. Cells are compared by identity.

    Args:
        row: names on the axes of the study, in the order of ``AXES``.
        seed: seed of training.
        recipe: the full recipe.
    """

    row: Row
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of the run folder. It includes the checksum, so that a changed study never uses old runs."""
        words = "--".join(re.sub(r"[^\w.+-]+", "-", value).strip("-.") or "x" for _, value in self.row)
        return f"{words[:80] or 'run'}--seed-{self.seed}--{self.digest[:8]}"

    @cached_property
    def digest(self) -> str:
        """The checksum of the recipe, including seed and data path, because rows may only differ in the path."""
        return self.recipe.placed_digest

    @property
    def label(self) -> str:
        """A readable name."""
        return " + ".join(value for _, value in self.row) or "run"


@dataclass(frozen=True)
class Study:
    """A validated study.

    Args:
        content: content of the study file.
        cells: the runs: rows in the order of the file, and for each row all seeds.
        path: path of the file, if there is one.
    """

    content: StudyFile
    cells: tuple[Cell, ...]
    path: Path | None = None

    @classmethod
    def read(cls, path: str | Path, *, allow_imports: bool = False) -> Study:
        """Read a study file.

        Args:
            path: the file.
            allow_imports: import code that the file or its recipe names by ``package.module:Name``. Only for files you
                trust: the code is run.

        Raises:
            RecipeError: the message has one line for each error, with its key.
        """
        path = Path(path)
        return replace(cls.of(read_yaml(path), path.parent, allow_imports=allow_imports), path=path)

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: Path = Path(), *, allow_imports: bool = False) -> Study:
        """Create a study from plain values; paths of recipes are relative to ``folder``."""
        try:
            file = StudyFile.model_validate(content)
        except ValidationError as error:
            raise RecipeError(
                "\n".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            ) from error
        _check(file)
        base = dict(read_yaml(folder / file.recipe)) if isinstance(file.recipe, str) else dict(file.recipe)
        base = with_changes(base, file.changes, Recipe.of({}).as_dict())
        cells = []
        wrong: list[str] = []
        for row in _rows(file):
            for seed in file.seeds:
                try:
                    cells.append(Cell(row, seed, _recipe(base, file, row, seed, allow_imports)))
                except RecipeError as error:
                    place = " + ".join(value for _, value in row)
                    wrong += [f"{place}: {line}" for line in str(error).splitlines()]
                    break
        if wrong:
            raise RecipeError("\n".join(wrong))
        return cls(file, tuple(cells))

    @property
    def runs(self) -> tuple[Cell, ...]:
        """The distinct runs; rows with equal recipes share their runs."""
        return tuple({cell.digest: cell for cell in reversed(self.cells)}.values())[::-1]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the table, each once."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes of the study."""
        return tuple(axis for axis in AXES if self.content.axis(axis))

    def baseline_of(self, row: Row) -> Row | None:
        """The row to compare ``row`` with: the names of the baseline, and its own on other axes."""
        if not self.content.baseline:
            return None
        wanted = tuple((axis, self.content.baseline.get(axis, name)) for axis, name in row)
        return wanted if wanted in self.rows and wanted != row else None

    def as_yaml(self) -> str:
        """The study file as YAML, including defaults."""
        return as_yaml(self.content.model_dump(mode="json"))


def title_of(axis: str) -> str:
    """The column heading of an axis."""
    return _TITLES[axis]


def _rows(file: StudyFile) -> list[Row]:
    axes = [axis for axis in AXES if file.axis(axis)]
    rows = [tuple(zip(axes, names, strict=True)) for names in product(*(file.axis(axis) for axis in axes))]
    return [row for row in rows if not any(fits(row, each) for each in file.exclude)]


def fits(row: Row, names: Mapping[str, str]) -> bool:
    """Whether a row has these names on these axes."""
    return all(dict(row).get(axis) == name for axis, name in names.items())


def _recipe(base: Mapping[str, Any], file: StudyFile, row: Row, seed: int, allow_imports: bool) -> Recipe:
    content, changes = dict(base), [f"train.seed={seed}"]
    for axis, name in row:
        value, section = file.axis(axis)[name], AXES[axis]
        changes_only = isinstance(value, list) and all(isinstance(each, str) and "=" in each for each in value)
        if section is None or changes_only:
            changes += value
        elif axis == "networks":
            content[section] = [value] if isinstance(value, str | dict) else value
        elif axis == "data":
            own = {"name": value} if isinstance(value, str) else value
            content[section] = {**dict(base.get(section, {})), **(own or {})}
        else:
            content[section] = value
    return Recipe.of(content, changes, allow_imports=allow_imports)


def _check(file: StudyFile) -> None:
    from metamixer.studies.columns import METRICS

    wrong = [f"metrics: {name!r}; expected {', '.join(METRICS)}" for name in file.metrics if name not in METRICS]
    wrong += [f"compare: {name!r} is not in metrics" for name in file.compare or () if name not in file.metrics]
    if len(set(file.seeds)) != len(file.seeds):
        wrong.append(f"seeds: {file.seeds} has one twice")
    named = [("baseline", file.baseline), *(("exclude", each) for each in file.exclude)]
    named += [("published", each.where) for each in file.published]
    if file.pool is not None:
        pooled = [("pool.of", file.pool.of), *(("pool.against", each) for each in file.pool.against)]
        if file.pool.over not in AXES or not file.axis(file.pool.over):
            axes = ", ".join(axis for axis in AXES if file.axis(axis))
            wrong.append(f"pool.over: {file.pool.over!r}; accepted is an axis of this study: {axes or 'it has none'}")
        wrong += [
            f"{place}: {file.pool.over} is the axis of pool.over" for place, each in pooled if file.pool.over in each
        ]
        named += pooled
    for place, names in named:
        for axis, name in names.items():
            if axis not in AXES:
                wrong.append(f"{place}: {axis!r} is not an axis; expected {', '.join(AXES)}")
            elif name not in file.axis(axis):
                wrong.append(f"{place}: {name!r} is not one of {axis}; {', '.join(file.axis(axis)) or 'none'}")
    if wrong:
        raise RecipeError("\n".join(wrong))
