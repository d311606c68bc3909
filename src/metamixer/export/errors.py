"""Errors of an export."""

from __future__ import annotations

from importlib.util import find_spec

from metamixer.config.yaml_file import RecipeError


class ExportError(ValueError):
    """A network that cannot be exported, or an exported file that does not say what the network says."""


def need(extra: str, *packages: str) -> None:
    """Raise RecipeError with the command that installs what is missing; call it before the work begins."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise RecipeError(f"this needs {' and '.join(missing)}: pip install 'metamixer[{extra}]'")
