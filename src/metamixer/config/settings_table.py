"""All settings of a recipe as table rows, generated from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from metamixer.config.data_section import DataSection
from metamixer.config.peer_section import PeerSection
from metamixer.config.recipe import TrainSection
from metamixer.core.ranges import model_of
from metamixer.losses import LOSSES
from metamixer.mixers import MIXERS
from metamixer.training.optimizer import Optim

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Setting:
    """A row: section or method, key in a recipe, accepted values, default, and meaning."""

    section: str
    key: str
    accepted: str
    default: str
    meaning: str


def settings() -> Iterator[Setting]:
    """Yield all settings by section; those of a mixer or loss under its name."""
    for section, owner in {"data": DataSection, "peers.N": PeerSection, "optim": Optim, "train": TrainSection}.items():
        yield from _of(section.partition(".")[0], section, owner)
    for prefix, table in (("mixer", MIXERS), ("loss", LOSSES)):
        for name in table:
            yield from _of(f"{prefix} {name}", prefix, table[name])


def sections() -> list[str]:
    """The sections of ``settings``."""
    return list(dict.fromkeys(setting.section for setting in settings()))


def markdown() -> str:
    """The settings as Markdown, with a table for each section or method."""
    lines: list[str] = []
    section = ""
    for each in settings():
        if each.section != section:
            section = each.section
            lines += ["", f"## {section}", "", "| setting | accepted | default | meaning |", "|---|---|---|---|"]
        cells = (f"`{each.key}`", each.accepted, f"`{each.default}`" if each.default else "", each.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines[1:]) + "\n"


def _of(section: str, prefix: str, owner: Any) -> Iterator[Setting]:
    meanings = documented(owner)
    fields: dict[str, FieldInfo] = getattr(owner, "model_fields", None) or model_of(owner).model_fields
    for name, each in fields.items():
        accepted = _accepted(each.annotation, each.metadata)
        yield Setting(section, f"{prefix}.{name}", accepted, _plain(each.default), meanings.get(name, ""))


def documented(owner: type) -> dict[str, str]:
    """The descriptions of settings in the ``Args`` of the docstrings of a class and its base classes."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        _, _, arguments = inspect.cleandoc(each.__dict__.get("__doc__") or "").partition("Args:\n")
        for names, text in re.findall(r"^    ([\w, ]+): (.*(?:\n {5,}.*)*)", arguments.split("\n\n")[0], re.M):
            line = re.sub(r"\bNone\b", "null", " ".join(text.split()).replace("``", "`"))  # the YAML spelling
            found |= dict.fromkeys(names.split(", "), line)
    return found


def _accepted(annotation: Any, metadata: list[Any]) -> str:
    """A readable description of a type: ``number ≥ 0``, ``sgd or adamw``, ``list of text, or null``."""
    limits = [f"{sign} {value:g}" for key, sign in _SIGNS.items() for value in _limits(metadata, key)]
    parts = get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _accepted(parts[0], [*metadata, *annotation.__metadata__])
    if get_origin(annotation) is Literal:
        said = " or ".join(_plain(value) for value in parts)
    elif annotation in _NAMES:
        said = _NAMES[annotation]
    elif get_origin(annotation) in (list, tuple):
        inside = [part for part in parts if part is not ...]
        said = f"list of {_accepted(inside[0], [])}" if inside else "list"
    elif parts:  # a union
        own = [_accepted(part, metadata) for part in parts if part is not NoneType]
        return " or ".join([*own, *["null"] * (NoneType in parts)])
    else:
        said = getattr(annotation, "__name__", str(annotation))
    return " ".join([said, ", ".join(limits)]).strip()


_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", list: "list", Any: "any"}


def _limits(metadata: list[Any], key: str) -> Iterator[float]:
    for each in metadata:
        for limit in (each, *getattr(each, "metadata", ())):
            if isinstance(value := getattr(limit, key, None), int | float):
                yield value


def _plain(value: Any) -> str:
    """A default in YAML; empty if the setting is required."""
    if value is PydanticUndefined or value is ...:
        return ""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value)
