"""Search files: a recipe, ranges of some of its settings, and the settings of the search."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError, as_yaml, parse_yaml, read_yaml, with_changes

Metric = Literal["accuracy", "best_peer", "ensemble", "nll", "ensemble_nll"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Range(_Section):
    """A range of values from ``low`` to ``high``; integers if both are integers.

    Args:
        low, high: bounds, both included.
        log: sample in the log domain, for settings such as a learning rate.
        step: distance between values, starting at ``low``.
    """

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None

    @property
    def distribution(self) -> BaseDistribution:
        """The distribution of Optuna; ValueError if the range is not valid."""
        whole = all(isinstance(each, int) for each in (self.low, self.high, self.step or 1))
        if whole:
            return IntDistribution(int(self.low), int(self.high), self.log, int(self.step or 1))
        return FloatDistribution(self.low, self.high, self.log, self.step)


class TuneFile(_Section):
    """The content of a search file.

    Args:
        recipe: the base recipe: a mapping, or the path of a recipe file relative to this file.
        changes: overrides of the recipe, as on the command line.
        space: settings of the recipe, such as ``optim.lr``, each with a range or a list of values.
        trials: total number of trials.
        metric: metric on the validation images after the last epoch: ``accuracy`` or ``nll`` (mean of the peers that
            learn), ``best_peer`` (their best accuracy), ``ensemble`` or ``ensemble_nll``.
        sampler: ``tpe`` (tree-structured Parzen estimator) or ``random``.
        pruner: ``median`` stops a trial that is worse than the median of the others after the same epoch;
            ``hyperband`` stops most trials after a few epochs; ``none``.
        startup: number of random trials before TPE proposes settings, and before the median stops trials.
        warmup: number of epochs in which the median stops no trial; None: a fifth of all epochs.
        seed: random seed of the search; that of training is ``train.seed``.
    """

    recipe: str | dict[str, Any] = {}
    changes: list[str] = []
    space: dict[str, Range | Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    trials: int = Field(30, ge=1)
    metric: Metric = "accuracy"
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    startup: int = Field(5, ge=1)
    warmup: int | None = Field(None, ge=0)
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Search:
    """A validated search.

    Args:
        content: content of the search file.
        base: the recipe as plain values, including ``changes``.
    """

    content: TuneFile
    base: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Search:
        """Read a search file.

        Raises:
            RecipeError: the message has one line for each error, with its key.
        """
        path = Path(path)
        return cls.of(read_yaml(path), path.parent)

    @classmethod
    def of(cls, content: Mapping[str, Any], folder: Path = Path()) -> Search:
        """Create a search from plain values; the path of a recipe is relative to ``folder``."""
        try:
            file = TuneFile.model_validate(content)
        except ValidationError as error:
            raise RecipeError("\n".join(map(_fault, error.errors()))) from error
        base = dict(read_yaml(folder / file.recipe)) if isinstance(file.recipe, str) else dict(file.recipe)
        found = cls(file, with_changes(base, file.changes, Recipe.of({}).as_dict()))
        found._check()
        return found

    @cached_property
    def space(self) -> dict[str, BaseDistribution]:
        """The Optuna distribution of every setting."""
        return {key: _distribution(key, values) for key, values in self.content.space.items()}

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Whether lower or higher values of the metric are better."""
        return "minimize" if "nll" in self.content.metric else "maximize"

    @property
    def epochs(self) -> int:
        """The largest number of epochs of a trial."""
        return self.recipe({}).train.epochs

    def recipe(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with the given values of the space; ``RecipeError`` if they are not valid."""
        return Recipe.of(self.base, [f"{key}={_text(value)}" for key, value in values.items()])

    def as_yaml(self) -> str:
        """The search as the text of a file for :meth:`read`, including defaults."""
        return as_yaml(self.content.model_dump(mode="json") | {"recipe": self.base, "changes": []})

    def described(self) -> dict[str, Any]:
        """Plain values that identify this search; the number of trials is not included."""
        return self.content.model_dump(mode="json", exclude={"trials", "recipe", "changes"}) | {"recipe": self.base}

    def _check(self) -> None:
        """Check each bound and choice of each setting, because errors would otherwise occur during the search."""
        ends = {key: _ends(each) for key, each in self.space.items()}
        first = {key: values[0] for key, values in ends.items()}
        self.recipe({})
        wrong: list[str] = []
        for key, values in ends.items():
            digests = set()
            for value in values:
                try:
                    digests.add(self.recipe(first | {key: value}).digest)
                except RecipeError as error:
                    wrong += [f"space: with {key}={_text(value)}: {line}" for line in str(error).splitlines()]
            if len(digests) == 1 < len(set(values)) and not wrong:
                wrong.append(f"space: {key} changes nothing that is computed")
        if "train.epochs" in ends and self.content.pruner == "hyperband":
            wrong.append("pruner: hyperband needs trials of one length, and train.epochs is in the space; use median")
        if wrong:
            raise RecipeError("\n".join(dict.fromkeys(wrong)))


def _distribution(key: str, values: Range | list[Any]) -> BaseDistribution:
    if isinstance(values, Range):
        try:
            return values.distribution
        except ValueError as error:
            said = f"space.{key}: {str(error).rstrip('.')}; a range such as {{low: 0.01, high: 0.1}} is accepted"
            raise RecipeError(said) from error
    choices = [_choice(each) for each in values]
    if len(set(choices)) < len(choices):
        raise RecipeError(f"space.{key}: a value occurs twice")
    return CategoricalDistribution(choices)


def _choice(value: Any) -> str:
    """A choice as YAML; text without quotes if it is read as the same text."""
    with contextlib.suppress(RecipeError):
        if isinstance(value, str) and parse_yaml(value) == value:
            return value
    return json.dumps(value)


def _ends(of: BaseDistribution) -> list[Any]:
    if isinstance(of, CategoricalDistribution):
        return list(of.choices)
    assert isinstance(of, IntDistribution | FloatDistribution)  # noqa: S101
    return [of.low, of.high]


def _text(value: Any) -> str:
    """A value as YAML; choices already are."""
    return value if isinstance(value, str) else json.dumps(value)


def _fault(error: Any) -> str:
    place = ".".join(str(step) for step in error["loc"] if step not in ("Range", "list[any]"))
    return f"{place}: {error['msg'].removeprefix('Value error, ')}"
