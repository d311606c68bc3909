"""A study file: methods x mixers x networks x data x seeds, and what their table shows."""

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
"""The axes, and the section of a recipe that each changes; ``settings`` changes any."""

Row = tuple[tuple[str, str], ...]
"""Names on the axes that a study has, in the order of ``AXES``."""

_TITLES = {"methods": "method", "mixers": "mixer", "networks": "networks", "data": "data", "settings": "settings"}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(_Section):
    """A published result, for a column of its own.

    Args:
        where: the row, as names of some axes: ``{methods: dml, data: cifar100}``.
        figure: as text: ``75.0 ± 0.2``.
        source: where it was published.
    """

    where: dict[str, str]
    figure: str
    source: str


class Measure(_Section):
    """What is measured after each training, beside accuracy, likelihood and calibration.

    Args:
        robustness: of ``corruptions``, ``fgsm``, ``pgd-10``, ``pgd-20``.
        localization: whether activation maps find the objects; for data with boxes.
        limit: test images for robustness; None: all.
    """

    robustness: tuple[Literal["corruptions", "fgsm", "pgd-10", "pgd-20"], ...] = ()
    localization: bool = False
    limit: int | None = Field(None, ge=1)


class Pool(_Section):
    """Rows against other rows over all names of an axis: the mean of their differences in each.

    Args:
        over: the axis.
        of: which rows, as names of some other axes; all of them without.
        against: the rows that each is compared with, as the names in which they differ from it.
    """

    over: str = "data"
    of: dict[str, str] = {}
    against: list[dict[str, str]] = Field(min_length=1)


class StudyFile(_Section):
    """What a study file may say.

    Args:
        title: above the table.
        recipe: of every run: a mapping, or the path of a recipe file, from the study file's folder.
        changes: of the recipe, as on the command line.
        methods, mixers, networks, data: axes: names of rows, each with what it changes. A list of names stands for
            itself (``[dml, kdcl]``); a value is a name, a section's content, or a list of changes (``[optim.lr=0.1]``).
        settings: an axis of lists of changes alone, for what belongs to no other, such as ``[train.epochs=400]``.
        exclude: combinations that are left out, as names of some axes.
        seeds: of training; every row has all of them, and differences are taken seed by seed.
        baseline: the row that others are compared with, as names of some axes; rows that differ from it in the other
            axes have a baseline each.
        metrics: the columns: of ``metamixer.studies.columns.METRICS``; also called ``figures``. The first is compared
            with the baseline's.
        compare: which columns are compared; None: the first.
        pool: see :class:`Pool`; the same columns are compared.
        measure: see :class:`Measure`.
        published: see :class:`Published`.
        confidence: of the intervals.
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
        validation_alias=AliasChoices("metrics", "figures"),  # the second is the key of files written before
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
    """One run of a study. Each is itself: two are never equal.

    Args:
        row: the names on the axes that the study has, in the order of ``AXES``.
        seed: of training.
        recipe: in full.
    """

    row: Row
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder. The recipe's checksum is in it, so that a changed study never takes over a run of another."""
        words = "--".join(re.sub(r"[^\w.+-]+", "-", value).strip("-.") or "x" for _, value in self.row)
        return f"{words[:80] or 'run'}--seed-{self.seed}--{self.digest[:8]}"

    @cached_property
    def digest(self) -> str:
        """The checksum of its recipe, seed and place of the data included: rows may differ in the place alone."""
        return self.recipe.placed_digest

    @property
    def label(self) -> str:
        """A readable name."""
        return " + ".join(value for _, value in self.row) or "run"


@dataclass(frozen=True)
class Study:
    """A study file that was read and found to fit.

    Args:
        content: of the file.
        cells: its runs: rows in the file's order, seeds inside of them.
        path: of the file, if it was one.
    """

    content: StudyFile
    cells: tuple[Cell, ...]
    path: Path | None = None

    @classmethod
    def read(cls, path: str | Path, *, allow_imports: bool = False) -> Study:
        """Read a study file.

        Args:
            path: of the file.
            allow_imports: import the code that it, or its recipe, names by ``package.module:Name``. Trust it first.

        Raises:
            RecipeError: one line for each thing that does not fit, with its place.
        """
        path = Path(path)
        return replace(cls.of(read_yaml(path), path.parent, allow_imports=allow_imports), path=path)

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: Path = Path(), *, allow_imports: bool = False) -> Study:
        """From plain values; paths of recipes start from ``folder``."""
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
        """The runs, each once: rows whose recipes are equal share theirs."""
        return tuple({cell.digest: cell for cell in reversed(self.cells)}.values())[::-1]

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of the table, each once."""
        return tuple(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that it has."""
        return tuple(axis for axis in AXES if self.content.axis(axis))

    def baseline_of(self, row: Row) -> Row | None:
        """The row that ``row`` is compared with: its own names where the baseline says nothing."""
        if not self.content.baseline:
            return None
        wanted = tuple((axis, self.content.baseline.get(axis, name)) for axis, name in row)
        return wanted if wanted in self.rows and wanted != row else None

    def as_yaml(self) -> str:
        """Everything, defaults included."""
        return as_yaml(self.content.model_dump(mode="json"))


def title_of(axis: str) -> str:
    """The heading of an axis's column."""
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
