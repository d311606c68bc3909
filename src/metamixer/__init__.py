"""Online knowledge distillation for PyTorch: small networks that train together and teach each other."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metamixer.cohort.cohort import Cohort
    from metamixer.cohort.shared_trunk import share_trunk
    from metamixer.core.plan import Blend, Mixer, MixPlan, Paste
    from metamixer.core.types import Batch, Outputs, Terms, total
    from metamixer.evaluation.assess import Assessment, assess
    from metamixer.evaluation.evaluate import Report, Score, evaluate
    from metamixer.losses import (
        AFD,
        AMLN,
        CLILR,
        DKD,
        DML,
        FFL,
        KD,
        KDCL,
        LMCL,
        MCL,
        ONE,
        PCL,
        Codistillation,
        CutnMixLoss,
        Independent,
        InfoMaxAdversarial,
        OKDDip,
        SwitOKD,
    )
    from metamixer.mixers import CutMix, CutnMix, ManifoldMixup, MetaMixer, Mixup, NoMix, SameClassCutMix
    from metamixer.training.optimizer import Optim
    from metamixer.training.train_step import Step, train_step
    from metamixer.training.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    # values
    "Batch", "Outputs", "Terms", "total", "MixPlan", "Blend", "Paste", "Mixer",
    # parts
    "Cohort", "share_trunk",
    "NoMix", "Mixup", "CutMix", "ManifoldMixup", "SameClassCutMix", "MetaMixer", "CutnMix",
    "Independent", "DML", "KDCL", "PCL", "ONE", "OKDDip", "CLILR", "FFL", "MCL", "LMCL", "AFD", "AMLN", "SwitOKD",
    "Codistillation", "CutnMixLoss", "InfoMaxAdversarial", "KD", "DKD",
    # line and loop
    "Step", "train_step", "Score", "Report", "evaluate", "Assessment", "assess", "Optim", "Trainer",
]  # fmt: skip

_HOMES = {
    "metamixer.evaluation.assess": ("Assessment", "assess"),
    "metamixer.cohort.cohort": ("Cohort",),
    "metamixer.evaluation.evaluate": ("Report", "Score", "evaluate"),
    "metamixer.cohort.shared_trunk": ("share_trunk",),
    "metamixer.losses": (
        "AFD",
        "AMLN",
        "CLILR",
        "Codistillation",
        "CutnMixLoss",
        "DKD",
        "DML",
        "FFL",
        "InfoMaxAdversarial",
        "Independent",
        "KD",
        "KDCL",
        "LMCL",
        "MCL",
        "OKDDip",
        "ONE",
        "PCL",
        "SwitOKD",
    ),
    "metamixer.mixers": ("CutMix", "CutnMix", "ManifoldMixup", "MetaMixer", "Mixup", "NoMix", "SameClassCutMix"),
    "metamixer.training.optimizer": ("Optim",),
    "metamixer.core.plan": ("Blend", "Mixer", "MixPlan", "Paste"),
    "metamixer.core.types": ("Batch", "Outputs", "Terms", "total"),
    "metamixer.training.train_step": ("Step", "train_step"),
    "metamixer.training.trainer": ("Trainer",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """Imports a public name when it is first asked for, so that ``metamixer --help`` does not wait for torch."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the module metamixer.evaluation.evaluate would put it in the place of the function of that name.
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
