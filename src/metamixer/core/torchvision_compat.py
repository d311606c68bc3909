"""Make torchvision importable with a torch that it was not built for.

The published torchvision wheel is a CUDA build. With a CPU-only torch its compiled library cannot be loaded, and the
import fails with "operator torchvision::nms does not exist", also for timm and torchmetrics. Declaring the two
operators that its Python code looks up is enough for transforms, models and data sets. They are declared only after a
plain import has failed, because an earlier declaration would clash with a working library.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader

_declared: list[Any] = []  # a Library undoes its definitions when it is garbage-collected


class _Loader:
    """Runs torchvision by its own loader, and again with the operators declared if they are missing."""

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
    """Acts on an import of torchvision; before that it costs nothing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # importlib.abc would cost the start
        return spec


def make_importable() -> None:
    """Let any later import of torchvision succeed. Safe to call more than once."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
