"""Checks and warnings before images are decoded, which can take minutes, and before training."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.machine import available_memory
from metamixer.data import Data
from metamixer.data.class_sampling import REMEDY, imbalance
from metamixer.models.factory import UnknownModel, check_exists
from metamixer.training.auto_strength import AutoStrength, is_auto
from metamixer.training.distributed import device_of
from metamixer.training.half_precision import warn_if_slow
from metamixer.training.trackers import PACKAGES


def check_before_data(recipe: Recipe) -> None:
    """Refuse unknown networks and devices, missing weights, images too large for the memory, too few validations for
    ``strength=auto``, trackers that are not installed, and batches that are balanced twice.

    Raises:
        RecipeError: the message has one line for each error.

    Warns:
        UserWarning: the precision is slower than float32 here.
    """
    wrong = [*_networks(recipe), *_memory(recipe), *_strength(recipe), *_trackers(recipe)]
    try:
        device = device_of(recipe.train.accelerator).type
    except ValueError as error:
        wrong.append(f"train.{error}")
    if recipe.data.sampler == "balanced" and recipe.train.per_class is not None:
        wrong.append(
            f"data.sampler: balanced with train.per_class={recipe.train.per_class}, whose batches are balanced; "
            "accepted is one of both"
        )
    if wrong:
        raise RecipeError("\n".join(wrong))
    warn_if_slow(recipe.train.precision, device)


def _networks(recipe: Recipe) -> list[str]:
    wrong = []
    for index, peer in enumerate(recipe.peers):
        try:
            check_exists(peer.name)
        except UnknownModel as error:
            wrong.append(f"peers.{index}: {error}")
        if peer.weights is not None and not Path(peer.weights).is_file():
            wrong.append(f"peers.{index}.weights: {peer.weights}: no such file")
    return wrong


def _trackers(recipe: Recipe) -> list[str]:
    return [
        f"train.trackers: {name} is not installed: pip install 'metamixer[{name}]'"
        for name in recipe.train.trackers
        if any(find_spec(package) is None for package in PACKAGES[name])
    ]


def _memory(recipe: Recipe) -> list[str]:
    """Check the memory for the images and companions of a batch in float32, which every step needs."""
    if recipe.data.size is None or recipe.train.batch_size == "auto":
        return []
    height, width = recipe.data.size
    images = recipe.train.batch_size * (2 if getattr(recipe.build_mixer(), "wants_companions", True) else 1)
    needed = 4 * images * (recipe.data.channels or 3) * height * width
    if needed <= (free := available_memory()):
        return []
    return [
        f"data.image_size={recipe.data.image_size}: the images of one batch of {recipe.train.batch_size} take "
        f"{needed / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB are free; a smaller data.image_size or "
        "train.batch_size is accepted"
    ]


def _strength(recipe: Recipe) -> list[str]:
    if is_auto(recipe.build_mixer()):
        try:
            AutoStrength(recipe.train)
        except ValueError as error:
            return [f"train.{error}, or mixer.strength=1"]
    return []


def advice(recipe: Recipe) -> list[str]:
    """Warnings about settings that are valid but probably a mistake."""
    found = []
    for index, peer in enumerate(recipe.peers):
        named = ":" in peer.name and not peer.name.startswith(("timm:", "torchvision:"))  # may load weights
        if peer.frozen and peer.weights is None and not peer.options.get("pretrained") and not named:
            found.append(
                f"peers.{index} ({peer.name}) is frozen and has no weights: the others learn from noise; "
                f"peers.{index}.weights=FILE.safetensors starts it from a trained network"
            )
        if peer.freeze is not None and peer.weights is None and not peer.options.get("pretrained") and not named:
            found.append(
                f"peers.{index} ({peer.name}) starts from random weights, and freeze={peer.freeze} keeps some of them; "
                f"peers.{index}.weights=FILE.safetensors or pretrained=true starts from trained ones"
            )
    if recipe.data.sampler == "balanced" and recipe.train.class_weights != "none":
        found.append(
            f"data.sampler=balanced and train.class_weights={recipe.train.class_weights} both make rare classes count "
            "more, so that they count twice; one of both is enough"
        )
    if len(recipe.members) == 1:
        found.append(
            f"{recipe.peers[0].name} is alone: no peer teaches it, and {recipe.loss.name} has nothing to compare; "
            "peers=[NAME, NAME] trains two that teach each other"
        )
    return found


def unequal_classes(recipe: Recipe, data: Data) -> str | None:
    """A hint if the class sizes differ much and the recipe does not compensate for it, else None."""
    counts = torch.bincount(data.train.labels.cpu(), minlength=len(data.classes)).tolist()
    found = imbalance(data.classes, counts)
    answered = recipe.train.class_weights != "none" or recipe.data.sampler == "balanced" or recipe.train.per_class
    return None if found is None or answered else f"{found}; {REMEDY}"
