"""Import paths, ``package.module:Name``: the only place where a name given as text is imported as code.

Importing a module runs it, so a name is imported only with the consent of the person who runs the program: by typing
it, by ``--allow-imports``, by ``allow_imports=True`` or by the environment. A name in a file is no consent, because
recipes, run folders and networks are shared. The allowed names are kept in an environment variable only, so that the
processes of a run or a study inherit them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from typing import Any

VARIABLE = "METAMIXER_ALLOW_IMPORTS"
"""``all``, or import paths separated by spaces."""

LIBRARIES = ("timm:", "torchvision:")
"""Prefixes of the names of networks of these libraries."""

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class ImportRefused(ValueError):
    """The import was not allowed."""


def allow(*names: str) -> None:
    """Allow these names from now on, in this process and in those that it starts."""
    known = os.environ.get(VARIABLE, "").split()
    new = [name for name in dict.fromkeys(names) if name not in known]
    if new and not _all():
        os.environ[VARIABLE] = " ".join([*known, *new])


def allow_all() -> None:
    """Allow every name from now on."""
    os.environ[VARIABLE] = "all"


def check(name: str) -> None:
    """Raise ImportRefused unless ``name`` was allowed."""
    if not _all() and name not in os.environ.get(VARIABLE, "").split():
        raise ImportRefused(
            f"{name!r} is code from outside of metamixer, which a file may not choose by itself; if you trust it, "
            "--allow-imports (in Python allow_imports=True) imports it"
        )


def load(name: str) -> Any:
    """Import ``package.module:Name``; the current folder is searched last.

    Raises:
        ImportRefused: the name was not allowed.
        ImportError, AttributeError: the module or the name does not exist.
    """
    check(name)
    if not _PATH.fullmatch(name):
        raise ImportError(f"{name!r} is not an import path")
    # Only now: a file in the current folder must not stand in for a package that is not installed.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    module, _, attribute = name.partition(":")
    return attrgetter(attribute)(import_module(module))


def named_in(value: Any, *, networks: bool = False) -> list[str]:
    """The strings inside plain values that could be import paths.

    Args:
        value: strings, mappings and lists.
        networks: the strings are names of networks; those of timm and torchvision are then not import paths.

    >>> named_in({"name": "ensemble", "members": [{"name": "nets:Net"}, {"name": "resnet20"}], "depth": 3})
    ['nets:Net']
    >>> named_in(["timm:resnet18", "timm:hf-hub:someone/net"], networks=True)
    ['timm:hf-hub:someone/net']
    """
    if isinstance(value, str):
        if networks and value.count(":") == 1 and value.startswith(LIBRARIES):
            return []
        return [value] if ":" in value and not re.search(r"\s", value) else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [name for part in parts for name in named_in(part, networks=networks)]


@contextmanager
def scope() -> Iterator[None]:
    """Forget at the end of the block what was allowed inside: the options of a command hold for this command only."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def anything_allowed() -> bool:
    """Whether any import is allowed, so that the next command needs --allow-imports as well."""
    return bool(os.environ.get(VARIABLE, "").strip())


def _all() -> bool:
    return os.environ.get(VARIABLE, "").strip().lower() in ("all", "1", "true", "yes")
