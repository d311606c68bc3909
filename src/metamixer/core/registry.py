"""Registries: names can be listed without importing torch; a part is imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One entry of a registry.

    Args:
        target: ``package.module:Name``.
        summary: a description of one line.
        paper: the publication of the method.
        needs: what a recipe has to provide for a loss: the ``needs`` of its class.
        deploys: the network that is deployed after training.
    """

    target: str
    summary: str
    paper: str = ""
    needs: tuple[str, ...] = ()
    deploys: str = ""


class Registry(Mapping[str, Any]):
    """A mapping of names. ``registry[name]`` imports the object of that name; ``registry.entries`` imports nothing.

    >>> counts = Registry({"counter": Entry("collections:Counter", "counts things")})
    >>> counts["counter"].__name__, counts.entries["counter"].summary
    ('Counter', 'counts things')
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        return load(self.entries[name].target)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def targets(self) -> list[str]:
        """The ``package.module:Name`` of every entry."""
        return [entry.target for entry in self.entries.values()]


def load(target: str) -> Any:
    """Import ``package.module:Name``. Never pass a name from a file: see ``trusted_imports``."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def lazy_names(package: str, targets: Iterable[str]) -> tuple[Callable[[str], Any], list[str]]:
    """``__getattr__`` and ``__all__`` of a package whose names are imported on first use (PEP 562).

    Args:
        package: the ``__name__`` of the package.
        targets: ``package.module:Name``; the package gets the attribute ``Name``.
    """
    homes = {target.partition(":")[2]: target for target in targets}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = load(homes[name])
        setattr(import_module(package), name, value)
        return value

    return get, list(homes)
