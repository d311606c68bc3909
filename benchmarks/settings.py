"""What to measure, and how large: checked before anything is run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from metamixer.config.yaml_file import RecipeError
from metamixer.models import UnknownModel, build

PRECISIONS = ("32", "bf16")
NETWORKS = ("resnet20", "resnet32", "wrn_16_2", "timm:resnet18")


@dataclass(frozen=True)
class Shape:
    """Batches of ``batch`` images of ``side`` x ``side`` pixels in three channels."""

    batch: int
    side: int


@dataclass(frozen=True)
class Settings:
    """The options of the command.

    Args:
        networks: names, as in a recipe.
        precisions: ``32`` and ``bf16``.
        batch_size: of the small networks; those of timm and torchvision get half of it at twice the side.
        rounds: how often everything is measured.
        device: ``cpu`` or ``cuda``.
        quick: tiny sizes. The numbers mean nothing; that all runs is what it shows.
    """

    networks: tuple[str, ...] = NETWORKS
    precisions: tuple[str, ...] = PRECISIONS
    batch_size: int = 128
    rounds: int = 7
    device: str = "cpu"
    quick: bool = False

    @property
    def where(self) -> torch.device:
        """Where to compute."""
        return torch.device(self.device)

    @property
    def classes(self) -> int:
        """As many as CIFAR-100 has."""
        return 10 if self.quick else 100

    @property
    def fastest(self) -> tuple[str, dict[str, Any]]:
        """The way to run a cohort's peers that is meant to be fastest there: its name, and what ``Cohort`` gets."""
        if self.where.type == "cpu":
            return "threads", {"parallel": "threads"}
        return "reduce-overhead", {"compile": "reduce-overhead"}

    def shape(self, network: str) -> Shape:
        """The batches of that network."""
        small = 16 if self.quick else 32
        if ":" in network:
            return Shape(max(2, self.batch_size // 2), 2 * small)
        return Shape(self.batch_size, small)

    def network(self, name: str) -> nn.Module:
        """The network, as the trainer lays it out."""
        side = self.shape(name).side
        made = build(name, num_classes=self.classes, image_size=(side, side))
        return made.to(self.where, memory_format=torch.channels_last)  # type: ignore[no-any-return]

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Of one forward pass."""
        return torch.autocast(self.where.type, torch.bfloat16, enabled=precision == "bf16")

    def check(self) -> None:
        """Raise RecipeError for what cannot be measured."""
        if self.rounds < 1 or self.batch_size < 2:
            raise RecipeError(f"--rounds {self.rounds}, --batch-size {self.batch_size}: expected at least 1 and 2")
        for precision in self.precisions:
            known(precision, PRECISIONS, "precision")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise RecipeError("--device cuda, but torch finds no GPU here; expected cpu or auto")
        for name in self.networks:
            try:
                build(name, num_classes=2)
            except UnknownModel as error:
                raise RecipeError(f"--networks: {error}") from error


def known(name: str, names: Collection[str], what: str) -> str:
    """The name, if it is one of ``names``; RecipeError if not.

    >>> known("step", ["step", "data"], "suite")
    'step'
    """
    if name not in names:
        raise RecipeError(f"{name!r} is not a {what}; expected {', '.join(names)}")
    return name


def spelled(precision: str) -> str:
    """As a reader knows it.

    >>> spelled("32"), spelled("bf16")
    ('fp32', 'bf16')
    """
    return "fp32" if precision == "32" else precision


def words(text: str) -> tuple[str, ...]:
    """The names in a list with commas, each once.

    >>> words("step, data,,step")
    ('step', 'data')
    """
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def pick(text: str | None, names: Sequence[str], what: str) -> tuple[str, ...]:
    """The names that were asked for, or all of them.

    >>> pick("data,step", ["step", "data", "peers"], "suite")
    ('data', 'step')
    """
    if text is None:
        return tuple(names)
    if not (asked := words(text)):
        raise RecipeError(f"no {what} is named; expected {', '.join(names)}")
    return tuple(known(name, names, what) for name in asked)
