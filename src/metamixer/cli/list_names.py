"""``metamixer list``: list names and settings for recipes. Only settings import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from metamixer.cli.console import console, table, titled
from metamixer.core.registry import Entry

_YOUR_OWN = {"package.module:Name": Entry("", "your own")}


def list_names(
    what: Annotated[str | None, typer.Argument(metavar="[networks|mixers|losses|data|settings]")] = None,
    only: Annotated[str | None, typer.Argument(metavar="[SECTION|METHOD]", help="Settings of train, dml, ...")] = None,
) -> int:
    """List names and settings for recipes."""
    from metamixer.config.yaml_file import RecipeError

    if what == "settings":
        return _settings(only)
    tables = _tables()
    if what is not None and what not in tables:
        raise RecipeError(f"{what!r} is not a list; accepted are {', '.join(tables)} and settings")
    if only is not None:
        raise RecipeError(f"{only!r}: only `list settings` takes a second word")
    for name, entries in tables.items():
        if what in (None, name):
            _print(name, entries)
    return 0


def _tables() -> dict[str, dict[str, Entry]]:
    """All lists by name."""
    from metamixer.core.standard_sets import STANDARD
    from metamixer.losses import LOSSES
    from metamixer.mixers import MIXERS
    from metamixer.models import MODELS

    return {
        "networks": {
            **MODELS.entries,
            "timm:NAME": Entry("", "any network of timm, such as timm:mobilenetv3_small_100"),
            "torchvision:NAME": Entry("", "any classifier of torchvision, such as torchvision:resnet18"),
            "package.module:callable": Entry("", "your own, called with num_classes and in_channels"),
        },
        "mixers": MIXERS.entries | _YOUR_OWN,
        "losses": LOSSES.entries | _YOUR_OWN,
        "data": {
            **{name: Entry("", standard.summary) for name, standard in STANDARD.items()},
            "FOLDER": Entry("", "images in train/CLASS/, val/CLASS/ and test/CLASS/, or in CLASS/"),
            "hf:NAME": Entry("", "a Hugging Face data set (needs the extra hf); data.stream=true reads it on the hub"),
            "wds:PATTERN": Entry("", "WebDataset tar shards, here or at URLs, such as wds:shards/{0000..0099}.tar"),
            "scenes:NAME": Entry(
                "", "the images of any of these as objects in scenes, with boxes to measure localization"
            ),
        },
    }


def _settings(only: str | None) -> int:
    from metamixer.config.settings_table import sections, settings
    from metamixer.config.yaml_file import RecipeError

    known = sections()
    wanted = [name for name in known if only in (None, name, *name.split()[1:])]
    if not wanted:
        raise RecipeError(f"{only!r} has no settings; accepted are {', '.join(known)}")
    for name in wanted:
        made = table(["setting", "accepted", "default", "what it does"], numbers=False)
        for each in settings():
            if each.section == name:
                made.add_row(each.key, each.accepted, each.default, each.meaning)
        console().print(titled(name, made))
    return 0


def _print(title: str, entries: Mapping[str, Entry]) -> None:
    """Print entries, with a column for each property that any of them has."""
    columns = {
        "paper": [entry.paper for entry in entries.values()],
        "needs": [", ".join(entry.needs) for entry in entries.values()],
        "deploys": [entry.deploys for entry in entries.values()],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    made = table(["name", "what it is", *shown], numbers=False)
    for row, (name, entry) in enumerate(entries.items()):
        made.add_row(name, entry.summary, *(cells[row] for cells in shown.values()))
    console().print(titled(title, made))
