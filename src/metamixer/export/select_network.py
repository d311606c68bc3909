"""Select the network of a run to export: the deployed one, a peer, the leader, or the ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.teacher_view import has_view
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.seeding import generator
from metamixer.data import Data, ImageSet, TensorImages, normalise
from metamixer.export.errors import ExportError
from metamixer.losses.base import Loss
from metamixer.models.ensemble import Ensemble
from metamixer.models.factory import build
from metamixer.runs.classifier import Classifier
from metamixer.runs.data_record import DataRecord, data_of
from metamixer.runs.run import facts_of, load_checkpoint, read_recipe


@dataclass(frozen=True, eq=False)
class Chosen:
    """A network of a run, independent of its cohort, and its origin.

    Args:
        classifier: the network on the CPU in evaluation mode, with classes, preprocessing and facts.
        peer: ``best``, ``leader``, ``ensemble`` or a number, as requested.
        members: indices in the cohort of the peers that it consists of.
        title: description for messages.
        recipe: recipe of the run.
        data: data of the run.
        whole: whether the ensemble has all peers of the cohort, as the ensemble in the tables of the run.
        final: whether it is from the end of the last epoch.
        random: whether the images are random, because the data were not read.
    """

    classifier: Classifier
    peer: str
    members: tuple[int, ...]
    title: str
    recipe: Recipe
    data: Data
    whole: bool
    final: bool
    random: bool = False

    @property
    def shown(self) -> tuple[str, ImageSet]:
        """The images to verify the file on: the test split if there is one, else validation, else training."""
        if self.random:
            return "random", self.data.train
        for name, images in (("test", self.data.test), ("validation", self.data.val), ("training", self.data.train)):
            if images is not None and len(images):
                return name, images
        raise ExportError(f"{self.data.name} has no images to check an export on")


def choose(folder: Path, peer: str = "best", *, data: str | None = None, check: bool = True) -> Chosen:
    """Select the network ``peer`` of the run in ``folder``.

    Args:
        folder: the run folder.
        peer: ``best``: the deployed network (``model.safetensors``). From the latest checkpoint: a number: that peer
            (or shadow); ``leader``: the single peer that the method deploys; ``ensemble``: the mean of the
            probabilities of all peers that learn.
        data: the current path of the data; None: as in training.
        check: read the data and refuse them if they have changed; False: use random images instead.

    Raises:
        RecipeError, DataError, CheckpointError, ExportError: the folder is not a run, its data are missing or have
            changed, it has no checkpoint, or no such network.
    """
    if not (peer in ("best", "leader", "ensemble") or peer.isdecimal()):
        raise RecipeError(f"--peer {peer}: expected best, leader, ensemble or the number of a peer")
    recipe = read_recipe(folder)
    found = data_of(recipe, folder, data, splits=()) if check else _stand_in(recipe, folder)
    chosen = _deployed(folder, recipe, found) if peer == "best" else _from_checkpoint(folder, peer, recipe, found)
    return replace(chosen, random=not check)


def _stand_in(recipe: Recipe, folder: Path) -> Data:
    """Random images with the classes, size and normalisation of the run."""
    path = folder / "model.safetensors"
    known = DataRecord.read(folder) or (Classifier.load(path) if path.is_file() else None)
    if known is None:
        raise ExportError(f"{folder} has neither data.json nor model.safetensors: its data are needed; --data FOLDER")
    drawn = torch.randint(0, 256, (16, known.channels, *known.size), generator=generator(0, "export"))
    kept = torch.float32 if recipe.data.bits == 16 else torch.uint8
    images = TensorImages(drawn.to(kept), torch.zeros(len(drawn), dtype=torch.int64), known.classes)
    return Data(recipe.data.name, images, None, None, known.classes, known.mean, known.std)


def _from_checkpoint(folder: Path, peer: str, recipe: Recipe, data: Data) -> Chosen:
    cohort = recipe.cohort_for(data, fetch=False)
    found = load_checkpoint(cohort, folder, "LATEST")
    cohort.eval()
    if peer == "ensemble":
        members: tuple[int, ...] = cohort.learners
    else:
        members = (_leader(recipe, cohort, data) if peer == "leader" else _numbered(recipe, cohort, int(peer)),)
        if has_view(cohort.peers[members[0]]):
            raise ExportError(
                f"--peer {peer} is a teacher with a normalisation or an order of classes of its own; its file is "
                f"{recipe.members[members[0]].weights or 'that of its pretrained weights'}"
            )
    steps = found.manifest["step"]
    # The folder name shows whether the epoch was finished; only the report of a finished run shows it was the last one.
    final = found.path.name.endswith("-whole") and (folder / "report.json").is_file()
    when = f"after epoch {recipe.train.epochs}, the last" if final else f"after step {steps}; training has not ended"
    names = [_titles(recipe)[index] for index in members]
    what = f"ensemble of {' and '.join(names)}" if peer == "ensemble" else f"peer {names[0]}"
    facts = facts_of(recipe) | {"peers": list(members), "names": names, "step": steps}
    return Chosen(
        _classifier(cohort, members, recipe, data, facts, peer == "ensemble"),
        peer,
        members,
        f"{what}, {when}",
        recipe,
        data,
        len(members) == len(cohort.peers),
        final,
    )


def _deployed(folder: Path, recipe: Recipe, data: Data) -> Chosen:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ExportError(
            f"{folder} has no model.safetensors: its training has not ended; --peer 0 takes the latest checkpoint"
        )
    try:
        classifier = Classifier.load(path)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ExportError(str(error)) from error
    if (classifier.classes, classifier.channels, classifier.size) != (data.classes, data.channels, data.size):
        raise ExportError(f"{path} and the data of {folder} differ in classes or image size: the data have changed")
    peer, epoch = classifier.facts["peer"], classifier.facts["epoch"]
    kept = {key: classifier.facts.get(key) for key in ("epoch", "validation_accuracy")}
    facts = facts_of(recipe) | {"peers": [peer], "names": [recipe.names[peer]], **kept}
    title = f"the deployed network, peer {recipe.names[peer]} after epoch {epoch}"
    final = epoch == recipe.train.epochs
    return Chosen(replace(classifier, facts=facts), "best", (peer,), title, recipe, data, False, final)


def _titles(recipe: Recipe) -> list[str]:
    """The names of the peers with their indices; the name of a shadow has the index of its peer."""
    return [name if index < len(recipe.members) else f"{index} (of {name})" for index, name in enumerate(recipe.names)]


def _numbered(recipe: Recipe, cohort: Cohort, number: int) -> int:
    if number >= len(cohort.peers):
        raise RecipeError(f"--peer {number}: there is no such peer; expected {', '.join(_titles(recipe))}")
    return number


@torch.no_grad()
def _leader(recipe: Recipe, cohort: Cohort, data: Data) -> int:
    """The index of the single peer that the method deploys."""
    loss = Loss.of(recipe.build_loss())
    name = recipe.loss.name
    images = data.train.fetch(torch.arange(min(2, len(data.train)))).cpu()
    loss.setup(cohort(normalise(images, data.mean, data.std)))  # some losses determine the leader from it
    allowed = loss.deployable(len(cohort.peers))
    if allowed is None:
        raise RecipeError(f"--peer leader: {name} has no leader; expected --peer best, a number or ensemble")
    if len(allowed) != 1:
        numbers = " and ".join(map(str, allowed))
        raise RecipeError(
            f"--peer leader: {name} deploys the best of the peers {numbers}, none of them leads; "
            f"expected --peer best or --peer {allowed[0]}"
        )
    return int(allowed[0])


def _classifier(
    cohort: Cohort, members: Sequence[int], recipe: Recipe, data: Data, facts: dict[str, Any], ensemble: bool
) -> Classifier:
    """Build new networks and load the weights, because those of a cohort have hooks, and branches share modules."""
    sections = [recipe.members[index % len(recipe.members)] for index in members]  # that of a shadow is its peer's
    # Without pretrained weights, which would be replaced.
    options = [{key: value for key, value in one.options.items() if key != "pretrained"} for one in sections]
    name, own = sections[0].name, options[0]
    described = [{"name": one.name, "options": own} for one, own in zip(sections, options, strict=True)]
    if ensemble:
        name, own = "ensemble", {"members": described}
    network = build(name, num_classes=len(data.classes), in_channels=data.channels, image_size=data.size, **own)
    networks = list(network.networks) if isinstance(network, Ensemble) else [network]
    for index, one in zip(members, networks, strict=True):
        one.load_state_dict(cohort.peers[index].state_dict())
    return Classifier.trained_on(data, recipe.data, network.eval(), name, own, facts)
