"""Ranges of settings, defined once in annotations and checked by both constructors and recipes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


@functools.cache
def model_of(owner: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of the settings of a class or of an ``__init__``, read from its signature."""
    hints = get_type_hints(_annotated(owner), include_extras=True)
    found: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(owner).parameters.items()
        if name != "self" and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=(), arbitrary_types_allowed=True)
    return create_model(getattr(owner, "__name__", "Settings"), __config__=config, **found)


def _annotated(owner: Callable[..., Any]) -> Any:
    """The object that has the annotations of the settings: a dataclass itself, or the ``__init__`` of another class."""
    if not isinstance(owner, type):
        return owner
    home = next(each for each in owner.__mro__ if "__init__" in vars(each))
    return home if "__dataclass_fields__" in vars(home) else home.__init__  # type: ignore[misc]


def check(owner: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Raise one ValueError that names all settings that do not match the annotations of ``owner``."""
    wrong: dict[Any, str] = {}
    try:
        valid = model_of(owner).model_validate(settings)
        for name, value in settings.items():  # pydantic converts text to a number, but the caller keeps the text
            if isinstance(value, str) and not isinstance(read := getattr(valid, name), str):
                wrong[name] = f"input should be of type {type(read).__name__}"
    except ValidationError as error:
        wrong = {fault["loc"][0]: fault["msg"][0].lower() + fault["msg"][1:] for fault in reversed(error.errors())}
    if wrong:
        raise ValueError("; ".join(f"{name}={settings[name]!r}: {wrong[name]}" for name in settings if name in wrong))


def check_fields(settings: Any) -> None:
    """:func:`check` for the fields of a dataclass, to be called in ``__post_init__``.

    Only the fields of the closest dataclass are checked: a subclass that is not one may have other settings.
    """
    owner = next(each for each in type(settings).__mro__ if "__dataclass_fields__" in vars(each))
    check(owner, {each.name: getattr(settings, each.name) for each in fields(owner) if each.init})
