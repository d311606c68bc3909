"""Hooks that stay in a network: points where it can be mixed, and where what it computes is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metamixer.core.plan import MixPlan


class Tap:
    """What a peer's points share: the plan of the running forward pass, and what they have seen in it."""

    def __init__(self) -> None:
        self.plan: MixPlan | None = None
        self.seen: list[tuple[int, Tensor]] = []
        self.features: Tensor | None = None

    @contextmanager
    def following(self, plan: MixPlan) -> Iterator[Tap]:
        """Mix by ``plan`` and record, until the end of the block."""
        self.plan = plan
        try:
            yield self
        finally:
            self.plan, self.seen, self.features = None, [], None


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
        if self.tap.plan is None:
            return None
        first = output[0] if isinstance(output, tuple) else output  # transformers' blocks return tuples
        if not isinstance(first, Tensor):
            raise ValueError(
                f"stage {self.stage} puts out a {type(first).__name__}, only tensors can be mixed: stages=[...] names "
                "the modules where other stages end"
            )
        mixed = self.tap.plan.apply(first, self.stage)
        self.tap.seen.append((self.stage, mixed))
        if hasattr(output, "_replace"):  # a named tuple
            return output._replace(**{output._fields[0]: mixed})
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


class HeadPoint:
    """A hook before the last linear layer: records the features that it sees."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    def __call__(self, module: nn.Module, args: Any) -> None:
        """What PyTorch calls before the module."""
        if self.tap.plan is not None and args and isinstance(args[0], Tensor):
            self.tap.features = args[0]


def install(network: nn.Module, paths: Sequence[str], tap: Tap) -> list[RemovableHandle]:
    """Put a mixing point at the end of each stage, and a point before the network's last linear layer."""
    handles = [
        network.get_submodule(path).register_forward_hook(MixingPoint(tap, number))
        for number, path in enumerate(paths, start=1)
    ]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if linear:
        handles.append(linear[-1].register_forward_pre_hook(HeadPoint(tap)))
    return handles
