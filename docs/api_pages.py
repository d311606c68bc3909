"""The API pages: written from the package when the site is built, so that moved modules need no change here."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path

from sphinx.application import Sphinx

import metamixer
from metamixer.losses import LOSSES
from metamixer.mixers import MIXERS

FOLDER = Path(__file__).parent / "api"
LEFT_OUT = {"__main__", "cli", "report"}  # parts of the commands, with nothing to call


def write_pages(app: Sphinx) -> None:
    """One page for each package with every module in it, and one of the public names."""
    pages: dict[str, list[str]] = {}
    for each in pkgutil.walk_packages(metamixer.__path__, "metamixer."):
        top, last = each.name.split(".")[1], each.name.rpartition(".")[2]
        if top not in LEFT_OUT and not last.startswith("_"):
            pages.setdefault(each.name if each.ispkg else each.name.rpartition(".")[0], []).append(each.name)
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.rst"):
        if old.stem not in {*pages, "index"}:
            old.unlink()
    for package, names in pages.items():
        lines = _title(package, "=")
        for name in names:
            lines += _title(name, "-") if name != package else []
            lines += [f".. automodule:: {name}", "   :members:", "   :ignore-module-all:", ""]
        _write(package, lines)
    mixers, losses = ([target.partition(":")[2] for target in each.targets] for each in (MIXERS, LOSSES))
    others = [name for name in metamixer.__all__ if name not in {*mixers, *losses}]
    lines = [*_title("API", "="), "What ``import metamixer`` gives; each name is imported when it is first used.", ""]
    for title, listed in {"Loop": others, "Mixers": mixers, "Losses": losses}.items():
        lines += [*_title(title, "-"), *_public(listed)]
    lines += [
        *_title("All modules", "-"),
        ".. toctree::",
        "   :maxdepth: 1",
        "",
        *(f"   {page.partition('.')[2]} <{page}>" for page in pages),
    ]
    _write("index", lines)


def _title(text: str, underline: str) -> list[str]:
    return [text, underline * len(text), ""]


def _public(names: Iterable[str]) -> list[str]:
    lines = [".. list-table::", "   :widths: 30 70", ""]
    for name in names:
        value = getattr(metamixer, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            shown = f":py:obj:`{name} <{value.__module__}.{value.__qualname__}>`"
            summary = (inspect.getdoc(value) or "").partition("\n")[0]
        else:
            shown, summary = f"``{name}``", f"``{value}``"
        lines += [f"   * - {shown}", f"     - {summary}"]
    return [*lines, ""]


def _write(page: str, lines: list[str]) -> None:
    (FOLDER / f"{page}.rst").write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain_signature(
    app: Sphinx, what: str, name: str, value: object, options: object, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Arguments without the ranges that their annotations hold.

    >>> plain_signature(None, "", "", None, None, "(rate: Annotated[float, Ge(ge=0)] = 0.1)", None)[0]
    '(rate: float = 0.1)'
    """
    while arguments and (start := arguments.find("Annotated[")) >= 0:
        depth, comma, end = 0, 0, start
        for end in range(start + len("Annotated"), len(arguments)):
            depth += (arguments[end] in "[(") - (arguments[end] in "])")
            comma = comma or (end if arguments[end] == "," and depth == 1 else 0)
            if not depth:
                break
        arguments = arguments[:start] + arguments[start + len("Annotated[") : comma] + arguments[end + 1 :]
    return arguments, returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", plain_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
