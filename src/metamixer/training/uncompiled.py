"""Optimizers of torch that do not import torch's compiler.

Most methods of ``torch.optim.Optimizer`` are wrapped such that ``torch.compile`` does not trace them. The wrappers
import the compiler when they are called, also in programs that never compile: 4 s of processor time before the first
step, more than ``import torch`` takes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import PurePath
from typing import Any

import torch

_WRAPPERS = {("_compile.py", "inner"), ("optimizer.py", "_use_grad"), ("optimizer.py", "wrapper")}
"""File and name of torch's wrappers: two that import the compiler, and the one with the hooks of a step."""


@cache
def without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A subclass of an optimizer with the same arithmetic, states, hooks and name, whose methods are not wrapped.

    ``step`` computes without gradients, as it does in torch, so ``differentiable`` is not for this subclass. Wrappers
    that this torch version does not have, or has under other names, stay.

    Args:
        kind: an optimizer of torch, such as ``torch.optim.SGD``.
    """
    methods = {name: getattr(kind, name) for name in dir(kind) if callable(getattr(kind, name))}
    bare = {name: _unwrapped(method) for name, method in methods.items()}
    found: dict[str, Any] = {name: bare[name] for name in bare if bare[name] is not methods[name] and name != "step"}
    return type(kind.__name__, (kind,), found | {"step": torch.no_grad()(bare["step"]), "__module__": kind.__module__})


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    while (code := getattr(function, "__code__", None)) is not None and hasattr(function, "__wrapped__"):
        if (PurePath(code.co_filename).name, code.co_name) not in _WRAPPERS:
            break
        function = function.__wrapped__
    return function
