"""Permanent forward hooks that mix at the end of a stage and record stage outputs and features."""

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
"""The batch axis of every tensor in a stage output, in the order of ``tree_flatten``; None: it has no batch axis."""


class Tap:
    """State shared by the hooks of a peer: the plan of the current forward pass, and what they recorded in it.

    With activation checkpointing a stage runs again in the backward pass, when no plan is set any more. Autograd
    numbers its nodes in the order of their creation, so the number of the node that triggers the second run identifies
    the forward pass, and thereby the plan.
    """

    def __init__(self) -> None:
        self.plan: MixPlan | None = None
        self.seen: list[tuple[int, Tensor]] = []
        self.features: Tensor | None = None
        self.learns = False
        self.without_graph: set[str] = set()
        """What the last pass recorded without a graph although the peer learns: ``stages``, ``features``."""
        self.axes: dict[int, Axes] | None = None
        """Batch axes of the stages that have one; None: not determined yet."""
        self.refused = ""
        """Why a stage cannot be mixed; empty if all can."""
        self.shapes: dict[int, Shapes] | None = None
        """Output shapes of the stages in a pass that only records shapes; None in other passes."""
        self._passes: deque[tuple[int, int, MixPlan]] = deque(maxlen=256)

    def __reduce__(self) -> tuple[type[Tap], tuple[()]]:
        return Tap, ()  # a copy starts empty: passes and axes belong to the network that ran

    @contextmanager
    def following(self, plan: MixPlan) -> Iterator[Tap]:
        """Mix by ``plan`` and record outputs inside the block."""
        self.plan, self.learns, self.without_graph = plan, torch.is_grad_enabled(), set()
        first = _made()
        try:
            yield self
        finally:
            if self.learns:
                self._passes.append((first, _made(), plan))
            self.plan, self.seen, self.features = None, [], None

    @contextmanager
    def recording_shapes(self) -> Iterator[dict[int, Shapes]]:
        """Only record the output shapes of every stage inside the block; nothing is mixed."""
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
        """Record in ``without_graph`` if no gradient can flow back from the tensor that was just recorded."""
        if self.learns and not torch.is_grad_enabled():
            self.without_graph.add(kind)


def _made() -> int:
    """The number of autograd nodes that this thread has created."""
    return 0 if torch.compiler.is_compiling() else int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


class MixingPoint:
    """A forward hook at the end of a stage: mixes by the current plan and records the result.

    It is permanent, because a compiled network silently ignores hooks that are added later. Without a plan, that is
    outside the forward pass of the cohort, it does nothing, so a peer can be used, copied, pickled and exported alone.
    """

    def __init__(self, tap: Tap, stage: int) -> None:
        self.tap = tap
        self.stage = stage

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Called by PyTorch after the module."""
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
        """The output with all batch tensors mixed, and the first of these with its batch axis first, to be recorded."""
        axes = (self.tap.axes or {}).get(self.stage)
        if isinstance(output, Tensor) and axes in (None, (0,)):
            mixed = plan.apply(output, self.stage)
            return mixed, mixed
        leaves, form = tree_flatten(output)
        places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        if axes is None:  # unknown: the batch is assumed on axis 0 of the first tensor; the others are not mixed
            axes = (0, *(None for _ in places[1:]))[: len(places)]
        if len(axes) != len(places) or all(axis is None for axis in axes):
            raise ValueError(
                f"stage {self.stage} returns a {type(output).__name__} with {len(places)} tensors, {len(axes)} were "
                "expected; accepted: modules that return the same in training as in evaluation (stages=[...])"
            )
        shown: list[Tensor] = []
        for place, axis in zip(places, axes, strict=True):
            if axis is not None:
                mixed = plan.apply(leaves[place].movedim(axis, 0), self.stage)
                shown.append(mixed)
                leaves[place] = mixed.movedim(0, axis)
        return tree_unflatten(leaves, form), shown[0]


class HeadPoint:
    """A hook before the last linear layer: records its input as features."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Called by PyTorch before the module."""
        if self.tap.plan is not None and args and isinstance(args[0], Tensor):
            self.tap.note("features")
            self.tap.features = args[0]


def tensors(output: Any) -> list[Tensor]:
    """The tensors in the output of a module: a tensor, or any nesting of tuples, lists and dicts."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]


def install(network: nn.Module, paths: Sequence[str], tap: Tap) -> list[RemovableHandle]:
    """Register a mixing point at the end of each stage, and a head point before the last linear layer."""
    handles = [
        end_of(network, network.get_submodule(path)).register_forward_hook(MixingPoint(tap, number))
        for number, path in enumerate(paths, start=1)
    ]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if linear:
        handles.append(linear[-1].register_forward_pre_hook(HeadPoint(tap)))
    return handles


def end_of(network: nn.Module, module: nn.Module) -> nn.Module:
    """The module itself, or for an ``nn.Sequential`` its last module, which has the same output.

    Activation checkpointing may call the blocks one by one and never the ``nn.Sequential`` (timm's ``checkpoint_seq``).
    """
    every = [id(each) for _, each in network.named_modules(remove_duplicate=False)]
    while type(module).forward is nn.Sequential.forward and "forward" not in vars(module):
        last = [module, *module.children()][-1]
        if last is module or every.count(id(last)) > 1 or not any(True for _ in last.parameters()):
            break
        module = last
    return module
