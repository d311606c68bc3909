"""Recipe files: a strict YAML dialect, and overrides from the command line."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character; in a value it may be a byte of a file name
_LARGEST_FILE = 50_000  # bytes; PyYAML takes about a second
_DEEPEST = 50  # recipes have about five levels


class RecipeError(ValueError):
    """An invalid recipe; the message has one line for each error."""


class _Loader(yaml.SafeLoader):
    """Strict YAML 1.1: no duplicate keys, aliases, merging, dates or tags; ``1e-3`` is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)  # raises for other nodes and for invalid keys
        if len(mapping) < len(node.value):
            counts = Counter(self.construct_object(key, deep=True) for key, _ in node.value)
            twice = sorted(str(key) for key, count in counts.items() if count > 1)
            raise RecipeError(f"line {node.start_mark.line + 1}: {', '.join(twice)} is set twice")
        if wrong := [key for key in mapping if isinstance(key, str) and _SURROGATE.search(key)]:
            raise RecipeError(f"line {node.start_mark.line + 1}: {wrong[0]!r} is not text")
        return mapping

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise RecipeError("aliases (*name) are not read: write the values out")
        if self._depth == _DEEPEST:  # the time of the scanner is quadratic in the depth
            raise RecipeError(f"not YAML: nested more than {_DEEPEST} deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


_OURS = [f"tag:yaml.org,2002:{name}" for name in ("float", "bool", "timestamp", "merge", "value")]
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OURS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# JSON types only: sets, dates and bytes have no use in a recipe, and could not be written to a run folder.
_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false|True|False)$"), list("tTfF"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    Raises:
        RecipeError: the file is missing or too large, or is not YAML, has a duplicate key, or is not a mapping.
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
    """Parse a YAML value: ``1e-3`` is a number, ``no`` is text, and a duplicate key is an error."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a subclass of the safe loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RecipeError("not YAML: nested too deep") from error
    except RecipeError:
        raise
    except (ValueError, KeyError, IndexError) as error:  # from PyYAML: `!!bool maybe`, an integer of 5000 digits
        raise RecipeError(f"not YAML: a value is not of its type: {error}") from error


class _Dumper(yaml.SafeDumper):
    """Quotes text that :class:`_Loader` or any other reader would not read as text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # PyYAML writes these unquoted and reads them as line ends.
        style = '"' if any(end in data for end in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
_Dumper.yaml_implicit_resolvers = {
    first: [
        *_Loader.yaml_implicit_resolvers.get(first, []),
        *(each for each in yaml.SafeDumper.yaml_implicit_resolvers.get(first, []) if each[0] in _OURS),
    ]
    for first in {**_Loader.yaml_implicit_resolvers, **yaml.SafeDumper.yaml_implicit_resolvers}
}


def as_yaml(content: Mapping[str, Any]) -> str:
    """Dump plain values so that :func:`parse_yaml` returns the same values, including text such as ``1e3``."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def is_by_hand(path: Path) -> bool:
    """Whether a file exists that was not written by :func:`as_yaml`: it has comments or another layout."""
    try:
        text = path.read_text(encoding="utf-8")
        return as_yaml(parse_yaml(text)) != text
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # RecipeError is one
        return True


def with_changes(content: Mapping[str, Any], changes: Iterable[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``content`` with changes such as ``peers.1.name=resnet32``; missing sections are copied from
    ``defaults``.
    """
    changed = copy.deepcopy(dict(content))
    for change in changes:
        place, equals, text = change.partition("=")
        if not equals or not place:
            raise RecipeError(f"{change!r} is not an override; expected key=value, such as optim.lr=0.05")
        steps = place.split(".")
        if len(steps) > 1 and steps[0] in defaults:
            changed.setdefault(steps[0], copy.deepcopy(defaults[steps[0]]))
        here: Any = changed
        for depth, step in enumerate(steps):
            last = depth == len(steps) - 1
            if isinstance(here, list):
                if not step.isdecimal() or len(step) > 9 or int(step) >= len(here):
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


def flat(content: Any, place: str = "", *, lists: bool = True) -> dict[str, Any]:
    """Flatten nested plain values: ``{"peers.1.name": "resnet20"}``; ``lists=False`` keeps lists."""
    if isinstance(content, dict) and content:
        items: Iterable[tuple[Any, Any]] = content.items()
    elif lists and isinstance(content, list) and content:
        items = enumerate(content)
    else:
        return {place: content}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, f"{place}.{key}" if place else str(key), lists=lists)
    return found
