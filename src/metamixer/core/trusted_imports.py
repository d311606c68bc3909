"""Import paths, ``package.module:Name``: the one place where a name from a text is imported as code.

To import a module is to run it, so a name is imported only if the one who runs the program said so: by typing it, by
``--allow-imports``, by ``allow_imports=True`` or by the environment. A file that names it is no such word, because
recipes, run folders and networks are passed on. What was allowed is kept in the environment: the processes that a run
or a study starts inherit it, and there is no second place that could say otherwise.
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
"""``all``, or import paths with spaces between them."""

LIBRARIES = ("timm:", "torchvision:")
"""What stands before the name of a network of these libraries."""

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


class ImportRefused(ValueError):
    """Nobody allowed this import."""


def allow(*names: str) -> None:
    """Allow these names from now on, here and in processes that are started from here."""
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
    """What ``package.module:Name`` names; the folder that one is in is looked through last.

    Raises:
        ImportRefused: nobody allowed it.
        ImportError, AttributeError: it is not there.
    """
    check(name)
    if not _PATH.fullmatch(name):
        raise ImportError(f"{name!r} is not an import path")
    # Not before: a folder of somebody else's must not fill in for packages that are not installed.
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
    module, _, attribute = name.partition(":")
    return attrgetter(attribute)(import_module(module))


def named_in(value: Any, *, networks: bool = False) -> list[str]:
    """The texts inside of plain values that could name code.

    Args:
        value: texts, mappings and lists.
        networks: they name networks: those that timm and torchvision have by name are no code of the user's.

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
    """What is allowed inside is forgotten afterwards: a command's options count for this command."""
    before = os.environ.get(VARIABLE)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def anything_allowed() -> bool:
    """Whether the next command needs --allow-imports as well."""
    return bool(os.environ.get(VARIABLE, "").strip())


def _all() -> bool:
    return os.environ.get(VARIABLE, "").strip().lower() in ("all", "1", "true", "yes")
