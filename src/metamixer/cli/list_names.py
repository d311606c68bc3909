"""``metamixer list``: what a recipe can name. It answers at once, because nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metamixer.cli import catalogue
from metamixer.cli.catalogue import Entry
from metamixer.cli.console import console, table, titled
from metamixer.cli.exit_codes import told
from metamixer.config.yaml_file import RecipeError

_OTHER_NETWORKS = {
    "timm:NAME": "any network of timm, such as timm:mobilenetv3_small_100",
    "torchvision:NAME": "any classifier of torchvision, such as torchvision:resnet18",
    "package.module:callable": "your own, called with num_classes and in_channels",
}
_OTHER_DATA = {
    "FOLDER": "images in train/CLASS/, val/CLASS/ and test/CLASS/, or in CLASS/",
    "hf:NAME": "a Hugging Face data set (needs the extra hf)",
    "scenes:NAME": "the images of any of these as objects in scenes, with boxes to measure where networks look",
}
_OTHER_PARTS = {"package.module:Name": "your own"}


@told
def show_names(what: str | None) -> int:
    """The names that a recipe can have, each with a line; of networks what they fix, of the others the defaults."""
    tables: dict[str, Callable[[], None]] = {
        "networks": lambda: _print("networks", catalogue.networks(), _OTHER_NETWORKS),
        "mixers": lambda: _print("mixers", catalogue.mixers(), _OTHER_PARTS),
        "losses": lambda: _print("losses", catalogue.losses(), _OTHER_PARTS),
        "data": lambda: _print("data", catalogue.data(), _OTHER_DATA),
    }
    if what is not None and what not in tables:
        raise RecipeError(f"{what!r} is no list; {', '.join(tables)} would work")
    for name, show in tables.items():
        if what in (None, name):
            show()
    return 0


def _print(title: str, entries: Sequence[Entry], others: Mapping[str, str]) -> None:
    """What there is nothing to say about for any of the entries has no column."""
    columns: dict[str, list[str]] = {
        "paper": [str(entry.constants.get("paper", "")) for entry in entries],
        "needs": [", ".join(_words(entry.constants.get("needs"))) for entry in entries],
        "deploys": [str(entry.constants.get("deploys", "")) for entry in entries],
        "settings": ["\n".join(_lines(entry.fixed or entry.settings)) for entry in entries],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    made = table(["name", "what it is", *shown], numbers=False)
    for row, entry in enumerate(entries):
        made.add_row(entry.name, entry.line, *(cells[row] for cells in shown.values()))
    for name, line in others.items():
        made.add_row(name, line, *[""] * len(shown))
    console().print(titled(title, made))


def _words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, tuple | list) else []


def _lines(settings: Mapping[str, Any]) -> list[str]:
    """Settings as they are written in a recipe."""
    return [f"{key}={_plain(value)}" for key, value in settings.items()]


def _plain(value: Any) -> Any:
    if value is None:
        return "null"
    if isinstance(value, float) and len(repr(value)) > 8:  # 80 / 300
        return f"{value:.4g}"
    return list(value) if isinstance(value, tuple) else value
