"""The recipe's ``peers``: which networks, what they start from, and what of them learns at which rate."""

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
    """One network. What is not named here goes to the network itself, as in ``{name: resnet20, shortcut: A}``.

    Args:
        name: a bundled network, ``timm:NAME``, ``torchvision:NAME`` or ``package.module:callable``.
        frozen: it does not learn: a teacher.
        weights: a ``.safetensors`` file to start from; where it knows other classes, the head stays new.
        stages: module paths at whose outputs its stages end; None: found.
        branches: how many peers grow from this network, on a trunk that they share.
        trunk: the stage at whose end they branch; None: the last but one, so that each has a last stage of its own.
        rescale: divide the gradient that reaches the trunk by the number of branches (CL-ILR).
        freeze: ``stem``, or the stem and all stages up to one, such as ``stage2``, do not learn, and their batch norm
            is in evaluation mode.
        freeze_epochs: how many epochs they do not learn; None: all of them.
        lr: its peak learning rate; None: ``optim.lr``.
        weight_decay: its weight decay; None: ``optim.weight_decay``.
        classes: the classes that the outputs of a frozen network stand for, in their order: a list of names, or the
            names of the data in ``natural`` order (1, 2, 10) or ``sorted`` (1, 10, 2); None: as its file says.
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
        """What goes to the network."""
        return dict(self.model_extra or {})

    @property
    def settings(self) -> PeerSettings:
        """How it learns."""
        stages = None
        if self.freeze is not None and (found := _FREEZE.fullmatch(self.freeze)):
            stages = int(found[1] or 0)
        paths = tuple(self.stages) if self.stages else None
        return PeerSettings(self.lr, self.weight_decay, stages, self.freeze_epochs, paths)
