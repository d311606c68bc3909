"""The ``peers`` of a recipe: networks, initial weights, and training settings of each peer."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from metamixer.config.data_section import Section, later
from metamixer.config.yaml_file import flat
from metamixer.training.peer_settings import PeerSettings

_FREEZE = re.compile(r"stem|(?:stem\.\.)?stage([1-9]\d*)")


class PeerSection(Section):
    """One network. Other keys are options of the network itself, as in ``{name: resnet20, shortcut: A}``.

    Args:
        name: a bundled network, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:callable``.
        frozen: do not train this network: it is a teacher.
        weights: ``.safetensors`` file with initial weights; if its classes differ, the head is initialised randomly.
        stages: paths of the modules whose outputs end its stages; None: find them.
        branches: number of peers made from this network, with a shared trunk.
        trunk: last stage of the trunk; None: the last but one, so that each branch has its own last stage.
        rescale: divide the gradient of the trunk by the number of branches (CL-ILR).
        freeze: freeze the stem (``stem``), or the stem and all stages up to a given one, such as ``stage2``, with their
            batch norm in evaluation mode.
        freeze_epochs: number of epochs in which they are frozen; None: all.
        lr: peak learning rate of this peer; None: ``optim.lr``.
        weight_decay: weight decay of this peer; None: ``optim.weight_decay``.
        classes: classes of the outputs of a frozen network, in order: a list of names, or the names of the data in
            ``natural`` order (1, 2, 10) or ``sorted`` (1, 10, 2); None: those in its weights file.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    frozen: bool = False
    weights: str | None = None
    stages: list[str] | None = None
    branches: int = Field(1, ge=1)
    trunk: int | None = Field(None, ge=1)
    rescale: bool = False
    freeze: str | None = later(None)
    freeze_epochs: Annotated[int, Field(ge=1)] | None = later(None)
    lr: Annotated[float, Field(gt=0)] | None = later(None)
    weight_decay: Annotated[float, Field(ge=0)] | None = later(None)
    classes: Literal["natural", "sorted"] | list[str] | None = later(None)

    @field_validator("freeze")
    @classmethod
    def _stages(cls, value: str | None) -> str | None:
        if value is not None and not _FREEZE.fullmatch(value):
            raise ValueError(f"{value!r}; stem, stage2 or stem..stage2 are accepted")
        return value

    @model_validator(mode="after")
    def _fits(self) -> PeerSection:
        for name, value in flat(self.options).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name}={value}: accepted are finite numbers")
        learns = {key: getattr(self, key) for key in ("freeze", "freeze_epochs", "lr", "weight_decay")}
        if given := [f"{key}={value}" for key, value in learns.items() if self.frozen and value is not None]:
            raise ValueError(f"{given[0]} with frozen=true, which learns nothing; expected one of both")
        if self.freeze_epochs is not None and self.freeze is None:
            raise ValueError(f"freeze_epochs={self.freeze_epochs} without freeze, such as freeze=stage2")
        if self.classes is not None and not self.frozen:
            raise ValueError(f"classes={self.classes} is for frozen networks; one that learns learns its classes")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options of the network."""
        return dict(self.model_extra or {})

    @property
    def settings(self) -> PeerSettings:
        """The training settings of this peer."""
        stages = None
        if self.freeze is not None and (found := _FREEZE.fullmatch(self.freeze)):
            stages = int(found[1] or 0)
        paths = tuple(self.stages) if self.stages else None
        return PeerSettings(self.lr, self.weight_decay, stages, self.freeze_epochs, paths)
