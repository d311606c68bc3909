"""Recipe files: YAML without its surprises, and changes from the command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

_LARGEST_FILE = 1_000_000  # bytes


class RecipeError(ValueError):
    """A recipe that cannot be followed; the message has one line for each fault."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader without its surprises: no duplicate keys, no aliases, ``1e-3`` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise RecipeError(f"line {node.start_mark.line + 1}: {', '.join(twice)} is set twice")
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise RecipeError("aliases (*name) are not read: write the values out")
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tTfF"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RecipeError: no such file, too large, not YAML, a key twice, or no mapping.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise RecipeError(f"{path} has {path.stat().st_size} bytes, a recipe has at most {_LARGEST_FILE}")
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}") from error
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: a recipe is a mapping with data, peers, mixer, loss, optim and train")
    return content


def parse_yaml(text: str) -> Any:
    """One YAML value: ``1e-3`` is a number, ``no`` is text, and a key that is set twice is an error."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a subclass of the safe loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RecipeError("not YAML: nested too deep") from error


def with_changes(content: Mapping[str, Any], changes: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``content`` with changes such as ``peers.1.name=resnet32``; sections that are missing come from
    ``defaults``.
    """
    changed = copy.deepcopy(dict(content))
    for change in changes:
        place, equals, text = change.partition("=")
        if not equals or not place:
            raise RecipeError(f"{change!r} is no change; one looks like optim.lr=0.05")
        steps = place.split(".")
        if len(steps) > 1 and steps[0] in defaults:
            changed.setdefault(steps[0], copy.deepcopy(defaults[steps[0]]))
        here: Any = changed
        for depth, step in enumerate(steps):
            last = depth == len(steps) - 1
            if isinstance(here, list):
                if not step.isdecimal() or int(step) >= len(here):
                    raise RecipeError(f"{place}: {'.'.join(steps[:depth])} is a list of {len(here)}, numbered from 0")
                key: Any = int(step)
                if isinstance(here[key], str) and not last:
                    here[key] = {"name": here[key]}
            elif isinstance(here, dict):
                key = step
                if not last and (key not in here or isinstance(here[key], str)):
                    here[key] = {"name": here[key]} if key in here else {}
            else:
                raise RecipeError(f"{place}: {'.'.join(steps[:depth])} is {here!r} and has no parts")
            if last:
                here[key] = parse_yaml(text)
            else:
                here = here[key]
    return changed
