"""Errors of an export."""

from __future__ import annotations

from importlib.util import find_spec

from metamixer.config.yaml_file import RecipeError


class ExportError(ValueError):
    """A network cannot be exported, or the outputs of an exported file differ from those of the network."""


def need(extra: str, *packages: str) -> None:
    """Raise RecipeError, with the command to install them, if packages are missing; to be called before any work."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise RecipeError(f"this needs {' and '.join(missing)}: pip install 'metamixer[{extra}]'")
