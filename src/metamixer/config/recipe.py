"""Recipes: the YAML file that defines a run.

A recipe has six sections: ``data``, ``peers``, ``mixer``, ``loss``, ``optim`` and ``train``. All of it is checked
before anything is built, and all errors are reported together, each with its key and what is accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import nn

from metamixer.cohort.cohort import Cohort, Compile
from metamixer.cohort.concurrency import Parallel
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.cohort.stages import find_stages
from metamixer.config.build_peer import Scale, Task, build_peer
from metamixer.config.data_section import DataSection, Section, is_place, placeless
from metamixer.config.peer_section import PeerSection
from metamixer.config.registry import LOSSES, MIXERS, all_settings, effective, faults, find, make
from metamixer.config.yaml_file import RecipeError, as_yaml, flat, read_yaml, with_changes
from metamixer.core import trusted_imports
from metamixer.core.plan import Mixer
from metamixer.core.seeding import derive
from metamixer.data import Data
from metamixer.losses.base import Loss
from metamixer.models.factory import check_name
from metamixer.training.optimizer import Optim
from metamixer.training.peer_settings import PeerSettings
from metamixer.training.settings import TrainSettings
from metamixer.training.trackers import Name as Tracker

_INSTEAD = "compile=reduce-overhead lets torch record CUDA graphs"


@dataclass(frozen=True)
class TrainSection(TrainSettings):
    """:class:`~metamixer.training.settings.TrainSettings`, and settings of batches and peers.

    Args:
        batch_size: number of images per step, over all processes; ``auto``: the largest power of two whose step needs
            half of the free memory, at most 256 and a twentieth of the training images.
        sync_batchnorm: synchronize batch norm over all processes of a group; CUDA only.
        per_class: number of images per class in a batch, such as 2 for contrastive losses; None: random batches.
        parallel: run peers one after the other (``none``), or in parallel on the cores of a CPU (``threads``).
        checkpointing: recompute blocks of the peers in the backward pass: less memory, about a third more time.
        compile: mode of ``torch.compile`` for the peers: ``false``, ``default``, or ``reduce-overhead`` and
            ``max-autotune``, which record CUDA graphs on a GPU.
        trackers: where to log metrics in addition to the files of the run: ``tensorboard`` (``events/``), ``wandb``,
            ``mlflow``.
    """

    batch_size: Annotated[int, Field(ge=2)] | Literal["auto"] = 64
    sync_batchnorm: bool = False
    per_class: Annotated[int, Field(ge=2)] | None = None
    parallel: Parallel = "none"
    compile: Compile = False
    checkpointing: Annotated[bool, Field(json_schema_extra={"neutral": False})] = False
    trackers: tuple[Tracker, ...] = ("tensorboard",)

    @model_validator(mode="before")
    @classmethod
    def _removed(cls, values: Any) -> Any:
        """Convert settings of earlier versions; those without effect are ignored."""
        if not isinstance(values, dict):
            return values
        if values.get("graphs", False) is not False:
            raise ValueError(f"graphs={values['graphs']} was removed; {_INSTEAD}")
        if values.get("parallel") == "streams":
            raise ValueError(f"parallel=streams was removed; {_INSTEAD}")
        compiled = {"compile": "default"} if values.get("compile") is True else {}
        return {key: value for key, value in values.items() if key != "graphs"} | compiled

    @field_validator("precision", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value  # `precision: 32` is a number in YAML


class Part(Section):
    """A mixer or a loss: its name and its settings at the same level. The name alone is accepted too."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, without the name."""
        return dict(self.model_extra or {})

    @cached_property
    def as_loss(self) -> Loss:
        """The loss of this name, built once to read its requirements. Runs build their own."""
        return Loss.of(make(self.model_dump(), LOSSES, "loss"))


_DEFAULTS: dict[str, Any] = {
    "peers": [{"name": "resnet20"}, {"name": "resnet20"}],
    "mixer": {"name": "metamixer"},
    "loss": {"name": "dml"},
}


_TRAIN = (
    "epochs", "batch_size", "seed", "precision", "accelerator", "devices", "num_nodes", "peer_groups", "sync_batchnorm",
    "timeout", "micro_batches", "mixing_groups", "on_nonfinite", "per_class", "update", "parallel", "compile",
    "checkpoint_every", "validate_every",
)  # fmt: skip
"""The order of the ``train`` section in files of the first version, and so in checksums; later settings follow."""

LAYOUT = ("devices", "num_nodes", "peer_groups", "timeout", "trackers")
"""Settings of ``train`` that do not affect results: processes and trackers."""

CODE = ("peers", "mixer", "loss")
"""The sections that can name code by an import path."""


class Recipe(Section):
    """Everything that a run depends on.

    >>> recipe = Recipe.of({"loss": {"name": "dml", "temperature": 4}}, ["optim.lr=0.05", "peers.1.name=resnet32"])
    >>> recipe.optim.lr, [peer.name for peer in recipe.peers], recipe.build_loss().temperature
    (0.05, ['resnet20', 'resnet32'], 4.0)
    """

    data: DataSection = DataSection()
    peers: list[PeerSection] = Field([PeerSection(**peer) for peer in _DEFAULTS["peers"]], min_length=1)
    mixer: Part = Part(**_DEFAULTS["mixer"], strength="auto")
    loss: Part = Part(**_DEFAULTS["loss"])
    optim: Optim = Optim()
    train: TrainSection = TrainSection()

    @classmethod
    def read(cls, path: str | Path, changes: Iterable[str] = (), *, allow_imports: bool = False) -> Recipe:
        """Read a YAML file and apply changes such as ``optim.lr=0.05`` or ``peers.1.name=resnet32``.

        Args:
            path: the file.
            changes: overrides, ``key=value``.
            allow_imports: import code that the file names by ``package.module:Name``. Only for files you trust: the
                code is run.

        Raises:
            RecipeError: the file cannot be read, or a setting is not valid.
        """
        return cls.of(read_yaml(Path(path)), changes, allow_imports=allow_imports)

    @classmethod
    def of(cls, content: Mapping[str, Any], changes: Iterable[str] = (), *, allow_imports: bool = False) -> Recipe:
        """Create a recipe from plain values, as in a file; see :meth:`read`."""
        changes = list(changes)
        raw = with_changes(content, changes, _DEFAULTS)
        if "mixer" not in content and not any(change.startswith("mixer=") for change in changes):
            raw["mixer"] = _with_strength(raw.get("mixer", _DEFAULTS["mixer"]), raw.get("data"))
        if allow_imports:
            for section in CODE:
                trusted_imports.allow(*trusted_imports.named_in(raw.get(section), networks=section == "peers"))
        raw |= {key: {"name": raw[key]} for key in ("mixer", "loss") if isinstance(raw.get(key), str)}
        if isinstance(raw.get("peers"), list):
            raw["peers"] = [{"name": peer} if isinstance(peer, str) else peer for peer in raw["peers"]]
        wrong: list[str] = []
        recipe = None
        try:
            recipe = cls.model_validate(raw)
        except ValidationError as error:
            wrong += faults(error, cls)
        for key, table in (("mixer", MIXERS), ("loss", LOSSES)):
            part = raw.get(key)
            if isinstance(part, dict) and isinstance(part.get("name"), str):
                try:
                    make(part, table, key)
                except RecipeError as error:
                    wrong += str(error).splitlines()
        for index, peer in enumerate(recipe.peers if recipe is not None else ()):
            try:
                check_name(peer.name, peer.options)
            except ValueError as error:
                wrong.append(f"peers.{index}: {error}")
        if wrong or recipe is None:
            raise RecipeError("\n".join(wrong))
        return recipe

    def as_dict(self) -> dict[str, Any]:
        """Plain values, including the defaults of all sections, of the mixer and of the loss."""
        content: dict[str, Any] = self.model_dump(mode="json")
        for key, table in (("mixer", MIXERS), ("loss", LOSSES)):
            content[key] = {"name": content[key]["name"], **all_settings(content[key], table)}
        content["train"] = {key: content["train"][key] for key in dict.fromkeys((*_TRAIN, *content["train"]))}
        # Sorted, so that the order of options of a network does not change the checksum.
        own = PeerSection.model_fields
        content["peers"] = [
            {key: peer[key] for key in own} | _sorted({key: peer[key] for key in peer if key not in own})
            for peer in content["peers"]
        ]
        return content

    def as_yaml(self) -> str:
        """The full recipe as the text of a file for :meth:`read`."""
        return as_yaml(self.as_dict())

    @property
    def digest(self) -> str:
        """A short checksum of all settings that affect results, independent of processes."""
        return sha256(as_yaml(self._what).encode()).hexdigest()[:16]

    @property
    def placed_digest(self) -> str:
        """The checksum of earlier versions, which includes the path of the data."""
        what = self._what
        what["data"] |= {"name": self.data.name, "root": self.data.root}
        return sha256(as_yaml(what).encode()).hexdigest()[:16]

    def at_home(self, known: Recipe) -> Recipe:
        """This recipe with the path of the data in ``known``, if both name the same data or both name paths."""
        places = all(is_place(each) or each.startswith("wds:") for each in (self.data.name, known.data.name))
        if self.data.name != known.data.name and not places:
            return self
        data = self.data.model_copy(update={"name": known.data.name, "root": known.data.root})
        return self.model_copy(update={"data": data})

    @property
    def _what(self) -> dict[str, Any]:
        """The settings that affect results: without the layout of processes, and without later settings at their
        neutral values.

        In the form of the first version, so that checksums of its runs do not change: ``compile`` was true or false,
        followed by ``graphs``.
        """
        content = self.as_dict()
        train: dict[str, Any] = {}
        for key, value in content["train"].items():
            if key == "compile":
                train |= {"compile": value == "default" or value, "graphs": False}
            elif key not in LAYOUT:
                train[key] = value
        content["train"] = train
        parts = {"data": DataSection, "optim": Optim, "train": TrainSection}
        parts |= {"mixer": find(self.mixer.name, MIXERS, "mixer"), "loss": find(self.loss.name, LOSSES, "loss")}
        content |= {key: effective(content[key], of) for key, of in parts.items()}
        content["data"] = placeless(content["data"])
        return content | {"peers": [effective(peer, PeerSection) for peer in content["peers"]]}

    def continued(self, earlier: Recipe) -> Recipe:
        """This recipe; if it is ``earlier`` with more epochs, the recipe that continues it with the remaining ones."""
        before = earlier.train
        if self.train.epochs <= before.epochs:
            return self
        longer = self.model_copy(update={"train": replace(self.train, continued=(*before.continued, before.epochs))})
        assert longer.before is not None  # noqa: S101
        return self if longer.before.differences(earlier) else longer

    @property
    def before(self) -> Recipe | None:
        """The recipe of the run that this one continues, or None."""
        if not self.train.continued:
            return None
        *earlier, epochs = self.train.continued
        return self.model_copy(update={"train": replace(self.train, epochs=epochs, continued=tuple(earlier))})

    def differences(self, other: Recipe) -> list[str]:
        """The differences from ``other`` that affect results, such as ``optim.lr: 0.1, here 0.05``."""
        here, there = flat(self._what), flat(other._what)
        return [
            f"{key}: {there.get(key, 'not set')}, here {here.get(key, 'not set')}"
            for key in sorted({*here, *there})
            if repr(here.get(key, flat)) != repr(there.get(key, flat))  # 1 is not 1.0 in a file, and .nan is .nan
        ]

    @property
    def members(self) -> tuple[PeerSection, ...]:
        """The section of every peer; one with branches occurs once for each branch."""
        return tuple(peer for peer in self.peers for _ in range(peer.branches))

    @property
    def peer_settings(self) -> tuple[PeerSettings, ...]:
        """The training settings of each member."""
        return tuple(peer.settings for peer in self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """The numbered names of the peers, followed by those of their shadows: ``0 resnet20``, ``1 resnet32``."""
        names = tuple(f"{index} {peer.name}" for index, peer in enumerate(self.members))
        shadow = self.loss.as_loss.shadows
        return (*names, *(f"{name} {shadow}" for name in names)) if shadow else names

    def build_mixer(self) -> Mixer:
        """Build the mixer with its settings."""
        mixer: Mixer = make(self.mixer.model_dump(), MIXERS, "mixer")
        return mixer

    def build_loss(self) -> nn.Module:
        """Build the loss with its settings."""
        loss: nn.Module = make(self.loss.model_dump(), LOSSES, "loss")
        return loss

    def build_cohort(
        self,
        num_classes: int,
        in_channels: int,
        size: tuple[int, int],
        *,
        classes: Sequence[str] | None = None,
        scale: Scale | None = None,
        fetch: bool = True,
        notes: list[str] | None = None,
    ) -> Cohort:
        """Build the peers, each initialised from its own seed.

        Args:
            num_classes, in_channels, size: properties of the data.
            classes: names of the classes, to compare with those of teachers; None: do not compare.
            scale: mean and deviation of the channels, to convert images to the normalisation of a teacher.
            fetch: load the initial weights; False if those of a checkpoint replace them.
            notes: a list to which notes on the origin of weights are appended.

        Raises:
            RecipeError: a network is unknown, does not accept its options or weights, or its stages are not found.
        """
        task = Task(num_classes, in_channels, size, None if classes is None else tuple(classes), scale)
        networks: list[nn.Module] = []
        wrong: list[str] = []
        sections = [section for section in enumerate(self.peers) for _ in range(section[1].branches)]
        with torch.random.fork_rng(devices=[]):
            for index, (place, peer) in enumerate(sections):
                torch.manual_seed(derive(self.train.seed, "init", index))
                try:
                    network, found = build_peer(peer, task, fetch=fetch)
                    if self.train.sync_batchnorm:
                        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
                    networks.append(network)
                    if notes is not None:
                        notes += [f"{index} {peer.name}: {note}" for note in found]
                except (TypeError, ValueError, ImportError, RuntimeError, OSError) as error:
                    wrong.append(f"peers.{place} ({peer.name}): {error}")
        if wrong:
            raise RecipeError("\n".join(dict.fromkeys(wrong)))
        try:
            self._share_trunks(networks)
            if "trunk" in self.loss.as_loss.needs and all(peer.branches == 1 for peer in self.peers):
                raise ValueError(
                    f"{self.loss.name} is for branches on a trunk, such as "
                    f"peers=[{{name: {self.peers[0].name}, branches: 3}}]"
                )
            return Cohort(
                networks,
                stages=[peer.stages for _, peer in sections],
                frozen=[index for index, (_, peer) in enumerate(sections) if peer.frozen],
                shadows=bool(self.loss.as_loss.shadows),
                parallel=self.train.parallel,
                compile=self.train.compile,
                checkpointing=self.train.checkpointing,
            )
        except ValueError as error:
            raise RecipeError(f"peers: {error}") from error

    def cohort_for(self, data: Data, *, fetch: bool = True, notes: list[str] | None = None) -> Cohort:
        """:meth:`build_cohort` for data, with their classes and normalisation for teachers."""
        scale = (tuple(data.mean), tuple(data.std))
        return self.build_cohort(
            len(data.classes), data.channels, data.size, classes=data.classes, scale=scale, fetch=fetch, notes=notes
        )

    def _share_trunks(self, networks: list[nn.Module]) -> None:
        first = 0
        for peer in self.peers:
            own = networks[first : first + peer.branches]
            first += peer.branches
            if peer.branches > 1:
                paths = peer.stages or find_stages(own[0])
                trunk = len(paths) - 1 if peer.trunk is None else peer.trunk
                if not 1 <= trunk <= len(paths):
                    raise ValueError(f"{peer.name} has {len(paths)} stages, its trunk cannot end with stage {trunk}")
                share_trunk(own, paths[trunk - 1], rescale=peer.rescale)


def _with_strength(mixer: Any, data: Any) -> Any:
    """The default mixer: its strength is ``auto``, unless there are no validation images."""
    without = isinstance(data, Mapping) and data.get("val_share") == 0
    if not isinstance(mixer, Mapping) or mixer.get("name") != "metamixer" or without:
        return mixer
    return {"strength": "auto", **mixer}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=str)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value
