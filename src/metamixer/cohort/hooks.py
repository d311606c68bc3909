"""Permanent forward hooks: they mix at the end of a stage, and record stage outputs and features."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from metamixer.core.plan import MixPlan

Shapes = tuple[torch.Size, ...]
Axes = tuple[int | None, ...]
"""Of everything that a stage puts out, in the order of ``tree_flatten``, the axis of the batch; None: it has none."""


class Tap:
    """What a peer's points share: the plan of the running forward pass, and what they have seen in it.

    A stage inside of activation checkpointing runs a second time, in the backward pass, where no plan is at work any
    more. Autograd numbers its nodes as they are made, so the number of the node that asks for the second run says which
    forward pass it belongs to, and with it the plan.
    """

    def __init__(self) -> None:
        self.plan: MixPlan | None = None
        self.seen: list[tuple[int, Tensor]] = []
        self.features: Tensor | None = None
        self.learns = False
        self.without_graph: set[str] = set()
        """What the last pass recorded without a graph although the peer learns: ``stages``, ``features``."""
        self.axes: dict[int, Axes] | None = None
        """Of every stage where the batch is on one; None: nobody looked yet."""
        self.refused = ""
        """Why a stage cannot be mixed; empty if all can."""
        self.shapes: dict[int, Shapes] | None = None
        """What the stages put out in a pass that only looks; None: this is no such pass."""
        self._passes: deque[tuple[int, int, MixPlan]] = deque(maxlen=256)

    def __reduce__(self) -> tuple[type[Tap], tuple[()]]:
        return Tap, ()  # a copy begins anew: passes and axes belong to the network that ran

    @contextmanager
    def following(self, plan: MixPlan) -> Iterator[Tap]:
        """Mix by ``plan`` and record, until the end of the block."""
        self.plan, self.learns, self.without_graph = plan, torch.is_grad_enabled(), set()
        first = _made()
        try:
            yield self
        finally:
            if self.learns:
                self._passes.append((first, _made(), plan))
            self.plan, self.seen, self.features = None, [], None

    @contextmanager
    def looking(self) -> Iterator[dict[int, Shapes]]:
        """Only note the shapes that every stage puts out, until the end of the block."""
        self.shapes = {}
        try:
            yield self.shapes
        finally:
            self.shapes = None

    def recomputed(self) -> MixPlan | None:
        """The plan of the pass that is being recomputed in a backward pass; None if none is."""
        node = None if torch.compiler.is_compiling() else torch._C._current_autograd_node()
        if node is None:
            return None
        number = node._sequence_nr()
        plan = next((plan for first, end, plan in reversed(self._passes) if first <= number < end), None)
        if plan is not None and not torch.is_grad_enabled():
            raise RuntimeError(
                "a stage is inside of activation checkpointing with use_reentrant=True that is inside of another one; "
                "accepted: use_reentrant=False"
            )
        return plan

    def note(self, kind: str) -> None:
        """Note whether gradients can flow back from what was just recorded."""
        if self.learns and not torch.is_grad_enabled():
            self.without_graph.add(kind)


def _made() -> int:
    """How many autograd nodes this thread has made."""
    return 0 if torch.compiler.is_compiling() else int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


class MixingPoint:
    """A forward hook at the end of a stage: mixes by the current plan and records what comes out.

    It is installed once and stays. A hook that is added for a step is silently ignored by a network that was
    compiled before. Without a plan, that is outside of the cohort's own forward pass, it does nothing, so a peer
    can be used, copied, pickled and exported alone.
    """

    def __init__(self, tap: Tap, stage: int) -> None:
        self.tap = tap
        self.stage = stage

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """What PyTorch calls after the module."""
        tap = self.tap
        if tap.plan is not None:
            mixed, shown = self._mixed(output, tap.plan)
            tap.note("stages")
            tap.seen.append((self.stage, shown))
            return mixed
        if tap.shapes is not None:
            tap.shapes[self.stage] = tuple(leaf.shape for leaf in tensors(output))
            return None
        plan = tap.recomputed()
        return None if plan is None else self._mixed(output, plan)[0]

    def _mixed(self, output: Any, plan: MixPlan) -> tuple[Any, Tensor]:
        """The output with every tensor of the batch mixed, and the first of them, batch first, which is recorded."""
        axes = (self.tap.axes or {}).get(self.stage)
        if isinstance(output, Tensor) and axes in (None, (0,)):
            mixed = plan.apply(output, self.stage)
            return mixed, mixed
        leaves, form = tree_flatten(output)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if axes is None:  # nobody could look: the first tensor is taken to begin with the batch, the others stay
            axes = (0, *(None for _ in places[1:]))[: len(places)]
        if len(axes) != len(places) or all(axis is None for axis in axes):
            raise ValueError(
                f"stage {self.stage} puts out a {type(output).__name__} with {len(places)} tensors, {len(axes)} were "
                "expected; accepted: modules that put out the same in training as in evaluation (stages=[...])"
            )
        shown: list[Tensor] = []
        for place, axis in zip(places, axes, strict=True):
            if axis is not None:
                mixed = plan.apply(leaves[place].movedim(axis, 0), self.stage)
                shown.append(mixed)
                leaves[place] = mixed.movedim(0, axis)
        return tree_unflatten(leaves, form), shown[0]


class HeadPoint:
    """A hook before the last linear layer: records the features that it sees."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def __call__(self, module: nn.Module, args: Any) -> None:
        """What PyTorch calls before the module."""
        if self.tap.plan is not None and args and isinstance(args[0], Tensor):
            self.tap.note("features")
            self.tap.features = args[0]


def tensors(output: Any) -> list[Tensor]:
    """The tensors in what a module puts out: a tensor, or any nesting of tuples, lists and dicts."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def install(network: nn.Module, paths: Sequence[str], tap: Tap) -> list[RemovableHandle]:
    """Put a mixing point at the end of each stage, and a point before the network's last linear layer."""
    handles = [
        end_of(network, network.get_submodule(path)).register_forward_hook(MixingPoint(tap, number))
        for number, path in enumerate(paths, start=1)
    ]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if linear:
        handles.append(linear[-1].register_forward_pre_hook(HeadPoint(tap)))
    return handles


def end_of(network: nn.Module, module: nn.Module) -> nn.Module:
    """The module itself, or the last one in it where it is a chain: its output is the chain's.

    Activation checkpointing may call the blocks of a chain one by one, and never the chain (timm's ``checkpoint_seq``).
    """
    every = [id(each) for _, each in network.named_modules(remove_duplicate=False)]
    while type(module).forward is nn.Sequential.forward and "forward" not in vars(module):
        last = [module, *module.children()][-1]
        if last is module or every.count(id(last)) > 1 or not any(True for _ in last.parameters()):
            break
        module = last
    return module
