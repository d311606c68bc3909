"""Build mixers and losses by name, from plain settings that are checked against their signatures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import nn

from metamixer.config.yaml_file import RecipeError
from metamixer.core import trusted_imports
from metamixer.core.ranges import model_of
from metamixer.losses import LOSSES
from metamixer.mixers import MIXERS

__all__ = ["LOSSES", "MIXERS", "all_settings", "effective", "faults", "find", "make"]


def make(part: Mapping[str, Any], table: Mapping[str, type], key: str) -> Any:
    """Build the object that a part names, with its settings checked against the signature."""
    settings = {name: value for name, value in part.items() if name != "name"}
    cls = find(part["name"], table, key)
    try:
        model = model_of(cls)
        valid = model.model_validate(settings)
    except ValidationError as error:
        raise RecipeError("\n".join(faults(error, model, prefix=key))) from error
    try:
        return cls(**{name: getattr(valid, name) for name in valid.model_fields_set})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{key}: {error}") from error


def all_settings(part: Mapping[str, Any], table: Mapping[str, type]) -> dict[str, Any]:
    """The settings of a part including defaults, as plain values."""
    settings = {name: value for name, value in part.items() if name != "name"}
    dumped: dict[str, Any] = model_of(find(part["name"], table, "")).model_validate(settings).model_dump(mode="json")
    return dumped


def effective(settings: Mapping[str, Any], of: type) -> dict[str, Any]:
    """Plain settings of a section, a mixer or a loss, without later settings at their neutral values.

    A new setting gets ``Field(json_schema_extra={"neutral": VALUE})``, in an ``Annotated`` type outside of pydantic
    models. With this value results are the same as before the setting existed, so the checksum of the recipe does not
    change.
    """
    fields = (of if issubclass(of, BaseModel) else model_of(of)).model_fields  # type: ignore[arg-type]
    extras = {name: field.json_schema_extra for name, field in fields.items()}
    neutral = {name: each["neutral"] for name, each in extras.items() if isinstance(each, dict) and "neutral" in each}
    return {
        name: value for name, value in settings.items() if name not in neutral or repr(value) != repr(neutral[name])
    }


def find(name: str, table: Mapping[str, type], key: str) -> type:
    """The class of that name, or of an import path that is allowed; RecipeError if there is none."""
    if name in table:
        return table[name]
    if ":" not in name:
        near = get_close_matches(name, table, n=2)
        known = ", ".join(near or table)
        raise RecipeError(f"{key}: {name!r} is not a {key}; {known} or 'package.module:Name'")
    try:
        found = trusted_imports.load(name)
    except trusted_imports.ImportRefused as error:
        raise RecipeError(f"{key}: {error}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"{key}: {name!r} cannot be imported: {error}") from error
    fits = isinstance(found, type) and (issubclass(found, nn.Module) if key == "loss" else is_dataclass(found))
    if not fits and key:
        wanted = "a torch module" if key == "loss" else "a frozen dataclass"
        raise RecipeError(f"{key}: {name!r} is not {wanted}, so it cannot be a {key}")
    return found  # type: ignore[no-any-return]


_MEMBER = re.compile(r"constrained-\w+|(literal|list|tuple|dict)\[.*]|str|int|float|bool")


def faults(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line for each error: the key, what is wrong, and what is accepted."""
    lines, before = [], ""
    for fault in error.errors():
        # The location includes members of a union, as in optim.lr.constrained-float and optim.lr.literal['auto'].
        where = [str(step) for step in fault["loc"] if not _MEMBER.fullmatch(str(step))]
        place = ".".join([prefix, *where] if prefix else where)
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _options(model, fault["loc"])
            near = get_close_matches(where[-1], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            lines.append(f"{place}: no such option; {hint}")
        elif fault["type"] in ("value_error", "assertion_error"):
            lines.append(f"{place}: {fault['msg'].removeprefix('Value error, ')}")
        elif place == before and len(where) < len(fault["loc"]):  # another member of the same union
            also, given = fault["msg"].removeprefix("Input should be "), f", not {fault['input']!r:.80}"
            lines[-1] = f"{lines[-1].removesuffix(given)}, or {also}{given}"
        else:
            lines.append(f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r:.80}")
        before = place
    return lines


def _options(model: Any, place: Sequence[int | str]) -> list[str]:
    for step in place[:-1]:
        if isinstance(step, str) and hasattr(model, "model_fields") and step in model.model_fields:
            model = model.model_fields[step].annotation
    return list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))
