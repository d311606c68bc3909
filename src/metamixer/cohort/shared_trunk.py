"""Peers with a shared trunk: the first stages are shared and computed once; each peer has its own branch after them.

ONE (arXiv 1806.04606), CL-ILR (1805.11761), OKDDip (1912.00350) and PCL (2006.04147) train such peers. A branch remains
a complete network that can be extracted, saved and used alone. The modules of the trunk are the same objects in all
branches, and in the forward pass of a cohort the first branch computes them for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Trunk:
    """The outputs of the shared modules in the current forward pass, in the order of the calls.

    Outputs are identified by their order rather than by module, because a network may call a module more than once.
    """

    def __init__(self, branches: int, rescale: bool) -> None:
        self.branches, self.rescale = branches, rescale
        self._forget()

    def _forget(self) -> None:
        self.running = self.inside = False
        self.kept: list[Any] = []
        self.passed = 0
        self.shown: Tensor | None = None
        self.learns = False

    @contextmanager
    def computed_once(self) -> Iterator[None]:
        """Inside the block, run every shared module for the first branch only."""
        self.running = True
        try:
            yield
        finally:
            self._forget()

    def begin(self, images: Tensor) -> None:
        """Begin the pass of a branch. It recomputes the trunk if its images or gradient mode differ from the last."""
        if not self.running:
            return
        if self.shown is not images or self.learns != torch.is_grad_enabled():
            self.kept = []
        self.shown, self.learns = images, torch.is_grad_enabled()
        self.inside, self.passed = True, 0


class _Shared:
    """Replaces the ``forward`` of a shared module. As an attribute of the module it is called together with the hooks,
    so that the mixing points of every branch act; names, weights and class of the module do not change."""

    def __init__(self, module: nn.Module, trunk: Trunk, path: str, last: bool) -> None:
        self.module, self.trunk, self.path, self.last = module, trunk, path, last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trunk = self.trunk
        if not trunk.inside:  # outside of a cohort's pass, or above the trunk
            return type(self.module).forward(self.module, *args, **kwargs)
        if trunk.passed == len(trunk.kept):
            trunk.inside = False  # modules called inside are part of this one
            output = type(self.module).forward(self.module, *args, **kwargs)
            trunk.inside = True
            trunk.kept.append(output)
        output = trunk.kept[trunk.passed]
        trunk.passed += 1
        if self.last:
            trunk.inside = False
            output = self._branch_off(output)
        return output

    def _branch_off(self, output: Any) -> Any:
        if not isinstance(output, Tensor):
            raise ValueError(f"the trunk ends in a {type(output).__name__} ({self.path}); expected a tensor")
        # A copy for each branch: an in-place operation at the start of a branch must not change the input of others.
        return _Rescale.apply(output, self.trunk.branches) if self.trunk.rescale else output.clone()  # type: ignore[no-untyped-call]


class _Rescale(torch.autograd.Function):
    """Identity with its gradient divided by the number of branches (ILR of arXiv 1805.11761, section 3.3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branches: int) -> Tensor:
        ctx.branches = branches
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.branches, None


def share_trunk(networks: Sequence[nn.Module], path: str, *, rescale: bool = False) -> None:
    """Let networks of one architecture share all modules up to and including ``path``, those of the first network.

    The modules before ``path`` are determined by the order of registration, which in the networks of torchvision, timm
    and this package is the order of execution. Parameters of the network itself or of another parent of ``path``, such
    as a position embedding, are shared as well.

    Args:
        networks: at least two, with separate weights; they keep the weights after the trunk.
        path: the last module of the trunk, such as ``layer2``.
        rescale: divide the gradient of the trunk by the number of branches. Otherwise it is the sum over the branches.

    Raises:
        ValueError: the networks differ or already share a trunk, or the module does not exist or is never called.
    """
    first = networks[0]
    if len(networks) < 2:
        raise ValueError("a trunk is shared by two networks or more")
    if len({tuple(name for name, _ in network.named_modules()) for network in networks}) > 1:
        raise ValueError("branches on one trunk need one architecture, these networks differ")
    try:
        end = first.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the trunk cannot end at {path!r}: {error}") from None
    if not path or isinstance(end, _LISTS):
        raise ValueError(f"the trunk cannot end at {path!r}: a {type(end).__name__} is {_why_not(path)}")
    if any(trunk_of(network) for network in networks):
        raise ValueError("a network already shares a trunk; expected new networks")
    trunk = Trunk(len(networks), rescale)
    for other in networks[1:]:
        for name, value in _own_parameters(first, path):
            owner, _, attribute = name.rpartition(".")
            setattr(other.get_submodule(owner), attribute, value)
    for shared in _before(first, path):
        module = first.get_submodule(shared)
        # An attribute takes precedence over the method of the class; nothing else changes.
        object.__setattr__(module, "forward", _Shared(module, trunk, shared, last=shared == path))
        for other in networks[1:]:
            owner, _, attribute = shared.rpartition(".")
            setattr(other.get_submodule(owner), attribute, module)


def trunk_of(network: nn.Module) -> tuple[Trunk, str] | None:
    """The trunk that a network shares with others, and the path where it ends; None if it shares none."""
    for module in network.modules():
        shared = vars(module).get("forward")
        if isinstance(shared, _Shared) and shared.last:
            return shared.trunk, shared.path
    return None


def counters_left_out(module: nn.Module, state: Mapping[str, Any], prefix: str) -> list[str]:
    """The names of batch norm counters that must be reported as missing, because shared tensors are saved once.

    Batch norm fills in its own counter if a state dict has no version, as with safetensors, and then does not report it
    as missing; but ``safetensors.torch.load_model`` expects all names of a shared tensor but one to be missing.
    """
    names = [
        f"{prefix}{name}."
        for name, each in module.named_modules(remove_duplicate=False)
        if getattr(each, "num_batches_tracked", None) is not None
    ]
    return [
        f"{name}num_batches_tracked"
        for name in names
        if f"{name}num_batches_tracked" not in state and f"{name}running_mean" not in state
    ]


_LISTS = (nn.ModuleList, nn.ModuleDict)  # never called themselves


def _why_not(path: str) -> str:
    return "never called; expected its last entry" if path else "the network itself; expected a part of it"


def _before(network: nn.Module, path: str) -> list[str]:
    """The outermost modules that are called up to and including ``path``."""
    found, prefix, module = [], "", network
    for part in path.split("."):
        for name, child in module.named_children():
            if name == part:
                break
            found += _called(f"{prefix}{name}", child)
        prefix, module = f"{prefix}{part}.", module.get_submodule(part)
    return [*found, path]


def _called(path: str, module: nn.Module) -> list[str]:
    """The path itself, or for a list, which is never called, the paths of its entries."""
    if not isinstance(module, _LISTS):
        return [path]
    return [called for name, child in module.named_children() for called in _called(f"{path}.{name}", child)]


def _own_parameters(network: nn.Module, path: str) -> list[tuple[str, nn.Parameter]]:
    """Parameters of the parents of ``path`` themselves, such as the position embedding of a transformer."""
    parts = path.split(".")
    owners = [".".join(parts[:depth]) for depth in range(len(parts))]
    return [
        (f"{owner}.{name}" if owner else name, value)
        for owner in owners
        for name, value in network.get_submodule(owner).named_parameters(recurse=False)
    ]
