"""Make torchvision importable with a torch that it was not built for.

The registry's torchvision is a CUDA build. Beside a CPU-only torch its compiled library cannot load, and the import
ends in "operator torchvision::nms does not exist", for timm and torchmetrics too. Declaring the two operators that the
Python side looks up is enough for its transforms, models and data sets. Done only after the plain import has failed,
because a declaration made first would clash with a library that works.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader

_declared: list[Any] = []  # a Library undoes its definitions when it is collected


class _Loader:
    """Runs torchvision as its own loader does, and once more with the operators declared where they are missing."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.own
        assert module.__spec__ is not None  # noqa: S101
        module.__spec__.loader = self.own
        try:
            self.own.exec_module(module)
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            import torch

            library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)
            self.own.exec_module(module)


class _Finder:
    """Steps in when somebody imports torchvision, which costs nothing before."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # importlib.abc would cost the start
        return spec


def make_importable() -> None:
    """From here on an import of torchvision, by whomever, works. Safe to call more than once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
