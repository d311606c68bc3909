"""The served networks, and their predictions for an image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamixer.cohort.stages import StagesNotFound
from metamixer.core.text import clean
from metamixer.data import normalise
from metamixer.evaluation.localization.activation_maps import NoMap, activation_maps, map_stage
from metamixer.export.load_model import load
from metamixer.export.onnx_file import OnnxClassifier
from metamixer.export.select_network import choose
from metamixer.models.ensemble import Ensemble
from metamixer.report.map_gallery import picture
from metamixer.runs.classifier import Classifier
from metamixer.training.checkpoint import CheckpointError


@dataclass(frozen=True, eq=False)
class Served:
    """Networks with the same classes and preparation. The first one determines the class of an image.

    Args:
        name: name of the run or file.
        networks: networks by name.
        stages: the stage of the feature map of each network that has one.
        device: device of the networks.
    """

    name: str
    networks: dict[str, Classifier | OnnxClassifier]
    stages: dict[str, str]
    device: str

    @classmethod
    def open(cls, path: Path, device: str = "cpu") -> Served:
        """Load the networks of a run folder, or of a ``.safetensors`` or ``.onnx`` file.

        For a run these are the deployed network, and the ensemble and all peers of the latest checkpoint, if there is
        one. For the file of an ensemble they include its members.

        Raises:
            DataError, RecipeError, CheckpointError, ExportError: there is no network, or it cannot be read.
        """
        networks = dict(_of_run(path) if (path / "recipe.yaml").is_file() else _of_file(path))
        stages = {}
        for name, one in networks.items():
            if isinstance(one, Classifier):
                one.network.to(device)
                if (stage := _map_stage(one, device)) is not None:
                    stages[name] = stage
        return cls(clean(path.absolute().name), networks, stages, device)

    @property
    def first(self) -> Classifier | OnnxClassifier:
        """The network that determines the class."""
        return next(iter(self.networks.values()))

    def about(self) -> dict[str, Any]:
        """A description of the networks, as plain values."""
        height, width = self.first.size
        return {
            "name": self.name,
            "classes": list(self.first.classes),
            "networks": list(self.networks),
            "size": {"height": height, "width": width, "channels": self.first.channels},
        }

    def look(
        self, content: bytes, *, top: int | None = None, maps: bool = False, of: str | None = None
    ) -> dict[str, Any]:
        """The predictions of all networks for the content of an image file, as plain values.

        Args:
            content: content of the file.
            top: number of classes with probabilities; None: all.
            maps: include the prepared image, and the activation map of each network that has one, as ``data:`` URIs.
            of: class of the maps; None: the predicted class of each network.

        Raises:
            ImageError: the file cannot be read.
        """
        prepared = self.first.read(content)
        images = prepared[None].to(self.device)
        answers = []
        for name, one in self.networks.items():
            row = one.probabilities(images)[0].cpu()
            order = row.argsort(descending=True, stable=True).tolist()
            shares = {one.classes[label]: round(float(row[label]), 6) for label in order[:top]}
            answer = {"name": name, "class": one.classes[order[0]], "probability": round(float(row[order[0]]), 6)}
            answers.append(answer | {"probabilities": shares})
            if maps and name in self.stages:
                label = order[0] if of is None else one.classes.index(of)
                answers[-1] |= {"map_of": one.classes[label], "map": picture(prepared, self._map(name, images, label))}
        found = {key: answers[0][key] for key in ("class", "probability")} | {"networks": answers}
        return found | ({"image": picture(prepared, None)} if maps else {})

    def _map(self, name: str, images: Tensor, label: int) -> Tensor:
        one = self.networks[name]
        assert isinstance(one, Classifier)  # noqa: S101
        pixels, wanted = normalise(images, one.mean, one.std), torch.tensor([label], device=images.device)
        return activation_maps(one.network, pixels, wanted, stage=self.stages[name])[0][0]


def _of_run(folder: Path) -> Iterator[tuple[str, Classifier]]:
    deployed = (folder / "model.safetensors").is_file()
    if deployed:
        yield "deployed", Classifier.load(folder)
    try:
        ensemble = choose(folder, "ensemble", check=False).classifier
    except CheckpointError:
        if not deployed:
            raise
        return
    yield from _with_members("ensemble", ensemble)


def _of_file(path: Path) -> Iterator[tuple[str, Classifier | OnnxClassifier]]:
    found = load(path).classifier
    if isinstance(found, Classifier):
        yield from _with_members(found.name, found)
    else:
        yield path.stem, found


def _with_members(name: str, found: Classifier) -> Iterator[tuple[str, Classifier]]:
    members = list(found.network.networks) if isinstance(found.network, Ensemble) else []
    if len(members) != 1:
        yield name, found
    names = [*map(str, found.facts.get("names", ()))]
    names = names if len(set(names)) == len(members) else [f"member {number}" for number in range(len(members))]
    for title, member in zip(names, members, strict=True):
        yield title, replace(found, network=member)


def _map_stage(one: Classifier, device: str) -> str | None:
    if isinstance(one.network, Ensemble):
        return None
    try:
        return map_stage(one.network, torch.zeros(1, one.channels, *one.size, device=device))
    except (NoMap, StagesNotFound):
        return None
