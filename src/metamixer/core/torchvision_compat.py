"""Makes torchvision importable beside a torch that it was not built for.

The registry's torchvision is a CUDA build. Beside a CPU-only torch its compiled library cannot load, and the import
ends in "operator torchvision::nms does not exist", for timm and torchmetrics too. Declaring the two operators that the
Python side looks up is enough for its transforms, models and data sets. Done only after the plain import
has failed, because a declaration made first would clash with a library that works.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_declared: list[Any] = []  # a Library undoes its definitions when it is collected


def mend() -> None:
    """Import torchvision, declaring its missing operators if need be. Safe to call more than once."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        importlib.import_module("torchvision")
