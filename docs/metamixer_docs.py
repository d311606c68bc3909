"""What the site adds to the Markdown files: facts on the cards of methods, tables from the code, links out of docs/.

The files stay readable where nothing is built. A comment ``<!-- table of methods -->`` becomes that table, a card
``methods/NAME.md`` gets the facts of the registry below its title, and a page that stands for a file of the root
becomes that file.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from sphinx.application import Sphinx
from sphinx.util import logging

from metamixer.config.settings_table import markdown
from metamixer.core.registry import Registry
from metamixer.losses import LOSSES
from metamixer.mixers import MIXERS

DOCS = Path(__file__).parent.resolve()
ROOT = DOCS.parent
ROOT_PAGES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md", "vulnerabilities": "SECURITY.md"}
REGISTRIES = {"methods": LOSSES, "mixers": MIXERS}  # folder of the cards -> what they are cards of

log = logging.getLogger(__name__)
_annotations: list[tuple[Any, dict[str, Any]]] = []


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Complete one Markdown page before it is parsed."""
    if docname in ROOT_PAGES:
        text = (ROOT / ROOT_PAGES[docname]).read_text(encoding="utf-8")
        source[0] = re.sub(r"\]\((?!#|\w+:)", "](../", text)
    if "<!-- table of settings -->" in source[0]:
        source[0] = source[0].replace("<!-- table of settings -->", markdown())
    for folder, registry in REGISTRIES.items():
        marker = f"<!-- table of {folder} -->"
        if marker in source[0]:
            source[0] = source[0].replace(marker, _table(registry, folder))
        if docname.startswith(f"{folder}/"):
            source[0] = _card(docname.removeprefix(f"{folder}/"), registry, source[0])
    source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    # Sphinx cannot put a link to a copied file into a table of contents.
    source[0] = re.sub(r"(?m)^#.*", lambda title: re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title[0]), source[0])
    outward = re.compile(r"\[([^][]*)\]\((\.\./[^)#\s]*)(#[^)]*)?\)")
    source[0] = outward.sub(lambda link: _outward(docname, *link.groups()), source[0])


def _table(registry: Registry, folder: str) -> str:
    for name in registry:
        if not (DOCS / folder / f"{name}.md").exists():
            log.warning("%r has no card: write docs/%s/%s.md", name, folder, name)
    full = any(entry.deploys for entry in registry.entries.values())
    lines = ["| name | idea |" + (" needs | deploys |" if full else ""), "|---|---|" + ("---|---|" if full else "")]
    for name, entry in registry.entries.items():
        rest = f" {', '.join(entry.needs) or '–'} | {entry.deploys} |" if full else ""
        lines.append(f"| [`{name}`]({folder}/{name}.md) | {entry.summary} |{rest}")
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *(f"{folder}/{name}" for name in registry), "```"])


def _card(name: str, registry: Registry, text: str) -> str:
    if name not in registry:
        log.warning("the card %r has no line in the registry", name)
        return text
    entry = registry.entries[name]
    target = entry.target.replace(":", ".")
    facts = {
        "recipe name": f"`{name}`",
        "paper": re.sub(r"(?:arXiv )?(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", entry.paper),
        "needs": ", ".join(entry.needs),
        "deploys": entry.deploys,
        "class": f"{{py:class}}`{target}`",
    }
    title, _, body = text.partition("\n")
    table = ["", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in facts.items() if value)]
    reference = ["", "## Settings", "", "```{eval-rst}", f".. autoclass:: {target}", "   :no-index:", "```", ""]
    return "\n".join([title, *table, body, *reference])


def _outward(docname: str, text: str, path: str, anchor: str | None) -> str:
    """A link that may leave docs/: to the page that stands for the file, or to the source, or to a copy of the file."""
    here = DOCS / Path(docname).parent
    file = Path(os.path.normpath(here / path))
    known = {ROOT / name: DOCS / f"{page}.md" for page, name in ROOT_PAGES.items()}
    known[ROOT / "README.md"] = DOCS / "index.md"
    target = known.get(file, file)
    if not target.exists():
        log.warning("%s: %s is not in the repository", docname, path)
    outside = not target.is_relative_to(DOCS)
    if outside and (source := source_url()):
        return f"[{text}]({source}/{target.relative_to(ROOT)}{anchor or ''})"
    if target.is_dir():
        return text  # nothing that Sphinx could open or copy
    local = os.path.relpath(target, here)
    if outside and target.suffix == ".md":  # Sphinx takes a plain link to it for a page
        return f"{{download}}`{text.replace('`', '')} <{local}>`"
    return f"[{text}]({local}{anchor or ''})"


def source_url() -> str:
    """Where files of the repository can be read, from ``[project.urls]``; empty while there is no public one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Source", "")).rstrip("/")


def plain_types(app: Sphinx, function: Any, bound_method: bool) -> None:
    """Show a signature without the ranges of settings, which are objects that Sphinx cannot read there."""
    try:
        plain, before = _hints(function), function.__annotations__
        function.__annotations__ = plain
    except (NameError, TypeError, AttributeError):  # names for type checkers alone, or no function
        return
    _annotations.append((function, before))


def _hints(function: Any) -> dict[str, Any]:
    owner = getattr(sys.modules.get(function.__module__), function.__qualname__.partition(".")[0], None)
    if not (is_dataclass(owner) and function.__name__ == "__init__"):
        return get_type_hints(function)
    known = get_type_hints(owner)  # fields of a base name what its module has
    return {name: known.get(name) for name in function.__annotations__}


def with_ranges_again(app: Sphinx, *signature: Any) -> None:
    """After a signature was made: the table of settings reads the ranges."""
    while _annotations:
        function, before = _annotations.pop()
        function.__annotations__ = before


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", read_source)
    app.connect("autodoc-before-process-signature", plain_types)
    app.connect("autodoc-process-signature", with_ranges_again)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
