"""Create a recipe and the name of its run from the arguments of a command."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from metamixer.config.data_section import is_place, placeless_name, without_kind
from metamixer.config.recipe import CODE, Recipe
from metamixer.config.yaml_file import RecipeError, parse_yaml
from metamixer.core import trusted_imports
from metamixer.runs.run import recipe_path


@dataclass(frozen=True)
class Sugar:
    """Options that are short forms of recipe overrides; None: not given."""

    data: str | None = None
    peers: str | None = None
    mixer: str | None = None
    loss: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    precision: str | None = None
    device: str | None = None
    image_size: int | None = None

    def from_here(self) -> Sugar:
        """The options with an absolute data path, because it is relative to the current folder, not the run folder."""
        if self.data is None or not is_place(self.data):
            return self
        kind, path = without_kind(self.data)
        return replace(self, data=kind + os.path.abspath(os.path.expanduser(path)))

    def changes(self) -> list[str]:
        """The options as overrides of a recipe.

        >>> Sugar(peers="resnet20,vgg8", epochs=3).changes()
        ['peers=["resnet20", "vgg8"]', 'train.epochs=3']
        """
        given = {place: getattr(self, option) for option, place in _PLACES.items()}
        if self.peers is not None:
            given["peers"] = [name.strip() for name in self.peers.split(",") if name.strip()]
        return [f"{place}={_as_yaml(value)}" for place, value in given.items() if value is not None]


_PLACES = {
    "data": "data.name",
    "peers": "peers",
    "mixer": "mixer",
    "loss": "loss",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "seed": "train.seed",
    "precision": "train.precision",
    "device": "train.accelerator",
    "image_size": "data.image_size",
}


def _as_yaml(value: str | int | list[str]) -> str:
    """Strings as YAML that is read as the same strings, such as ``no``, ``12`` or ``[x]: y``."""
    if isinstance(value, int):
        return str(value)
    return str(yaml.safe_dump(value, default_style='"', default_flow_style=True, width=float("inf"))).strip()


def recipe_of(words: Sequence[str], sugar: Sugar, resumed: Path | None = None) -> Recipe:
    """The recipe from the arguments ``[RECIPE.yaml] [key=value ...]`` and the options; overrides take precedence.

    Args:
        words: arguments of the command line.
        sugar: the options.
        resumed: folder of a run whose recipe is used instead of a file.

    Raises:
        RecipeError: the message has one line for each error.
    """
    file, changes = None, list(words)
    if changes and ("=" not in changes[0] or os.path.isfile(changes[0])):  # pathlib raises for long names
        file = Path(changes.pop(0))
        if os.path.isdir(file):
            raise RecipeError(f"{file} is a folder, not a recipe; --data {file} trains on its images")
        if not os.path.exists(file):
            raise RecipeError(f"{file}: no such recipe; accepted are a YAML file and overrides such as optim.lr=0.05")
    if stray := [word for word in changes if "=" not in word]:
        raise RecipeError(f"{stray[0]!r} is not an override; expected key=value, such as optim.lr=0.05")
    changes = sugar.changes() + changes
    _allow_typed(changes)
    if resumed is not None:
        if file is not None:
            raise RecipeError(f"--resume takes the recipe of {resumed}; leave {file} out")
        recipe = Recipe.read(recipe_path(resumed), changes)
    else:
        recipe = Recipe.of({}, changes) if file is None else Recipe.read(file, changes)
    if recipe.train.accelerator == "cuda" and not torch.cuda.is_available():
        raise RecipeError("train.accelerator: 'cuda', but torch finds no GPU here; accepted are cpu and auto")
    return recipe


def _allow_typed(changes: Iterable[str]) -> None:
    """Allow import paths typed in the command, which is the consent of the user; those in files are not."""
    for change in changes:
        place, _, text = change.partition("=")
        if (section := place.split(".")[0]) in CODE:
            trusted_imports.allow(*trusted_imports.named_in(parse_yaml(text), networks=section == "peers"))


def slug(*parts: str) -> str:
    """A file name with the characters ``a-z 0-9 . _ -``, without path separators or parent folders.

    >>> slug("../../Photos of [cats]", "dml"), slug("..", "ü")
    ('photos-of-cats-dml', 'run')
    """
    plain = (re.sub(r"[^a-z0-9._-]+", "-", part.lower()).strip("-._") for part in parts)
    return "-".join(part[:60] for part in plain if part) or "run"


def folder_name(recipe: Recipe) -> str:
    """The default name of a run folder: data, peers, method and seed."""
    data = recipe.data.name
    if data.startswith(("hf:", "wds:")):
        short = placeless_name(data).replace(":", "-") if data.startswith("wds:") else data.replace(":", "-")
    else:
        short = Path(data).expanduser().resolve().name
    peers = "-".join(peer.name for peer in recipe.peers)
    return slug(short, peers, recipe.loss.name, recipe.mixer.name, f"seed{recipe.train.seed}")
