"""Whole training steps as CUDA graphs: forward, loss, backward and optimizer in one launch.

A step of two ResNet-20 is some 500 kernels of a few microseconds each, so that a GPU waits for Python most of the time.
A graph replays them without Python. It repeats the very same kernels on the very same memory: what changes from step to
step has to be written into tensors that stay where they are, and what changes the kernels needs a graph of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from metamixer.plan import MixPlan, Operation, Paste, PerPeer
from metamixer.records import Batch

Computed = tuple[dict[str, Tensor], Tensor, Tensor]
"""What a step computes: terms and watched numbers by name ``(P,)``, logits ``(P, B, C)``, soft targets ``(B, C)``."""

Compute = Callable[[Batch, MixPlan, Tensor], Computed]
"""A whole step, optimizer included: batch, plan, progress as a 0-d tensor. It must not wait for the device."""


class Replay(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Run it again on the memory that it was recorded with."""


Record = Callable[[Callable[[], Computed]], tuple[Replay, Computed]]
"""Records a step without running it: what replays it, and the tensors that a replay fills."""


@dataclass
class _Kind:
    """One kind of step: its memory, how often it came, and, once recorded, its graph."""

    batch: Batch
    plan: MixPlan
    progress: Tensor
    seen: int = 0
    graph: Replay | None = None
    computed: Computed | None = None


class StepGraphs:
    """Runs steps as graphs, one graph for each kind: the same shapes, and operations at the same stages.

    The first steps of a kind run as usual, on a stream of their own: they are real steps of the training and at the
    same time what CUDA asks for before a capture. The next one is recorded, and from then on it is replayed.

    Args:
        compute: the step.
        stages: how many a network has, to settle relative depths before the graph is chosen.
        peers: how many networks follow the plan.
        device: where.
        warm_up: steps of a kind that run as usual.
        record: how a step is recorded; CUDA graphs that share one pool of memory by default.
    """

    def __init__(
        self,
        compute: Compute,
        *,
        stages: int,
        peers: int,
        device: torch.device,
        warm_up: int = 3,
        record: Record | None = None,
    ) -> None:
        self.compute, self.stages, self.peers, self.device, self.warm_up = compute, stages, peers, device, warm_up
        self.record = record or _CudaRecorder()
        self.kinds: dict[Hashable, _Kind] = {}

    def __call__(self, batch: Batch, plan: MixPlan, progress: float) -> Computed:
        """One step. The terms are the caller's to keep, the rest holds until the next step."""
        batch = Batch(batch.images, batch.labels, views=batch.views)  # companions are in the plan, if it pastes them
        plan = MixPlan(tuple(self._settle(plan, place) for place in range(len(plan.operations))))
        key = _key(batch, plan)
        if key not in self.kinds:
            self.kinds[key] = _Kind(
                Batch(
                    _own(batch.images, self.device),
                    _own(batch.labels, self.device),
                    views=batch.views and tuple(_own(view, self.device) for view in batch.views),
                ),
                MixPlan(tuple(_own_operation(operation, self.device) for operation in plan.operations)),
                torch.tensor(progress, dtype=torch.float64, device=self.device),
            )
        kind = self.kinds[key]
        for own, given in zip(_tensors(kind.batch, kind.plan), _tensors(batch, plan), strict=True):
            own.copy_(given, non_blocking=True)
        kind.progress.fill_(progress)
        kind.seen += 1
        if kind.seen <= self.warm_up:
            return self._as_usual(kind)
        if kind.graph is None:
            try:
                kind.graph, kind.computed = self.record(lambda: self.compute(kind.batch, kind.plan, kind.progress))
            except RuntimeError as error:
                raise RuntimeError(
                    f"this step cannot be captured as a graph, graphs=False would work: {error}"
                ) from error
        kind.graph.replay()
        assert kind.computed is not None  # noqa: S101
        terms, logits, targets = kind.computed
        return {name: term.detach().clone() for name, term in terms.items()}, logits, targets

    def _as_usual(self, kind: _Kind) -> Computed:
        if self.device.type != "cuda":
            return self.compute(kind.batch, kind.plan, kind.progress)
        caller = torch.cuda.current_stream(self.device)
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(caller)
        with torch.cuda.stream(side):
            computed = self.compute(kind.batch, kind.plan, kind.progress)
        caller.wait_stream(side)
        return computed

    def _settle(self, plan: MixPlan, place: int) -> Operation:
        """An operation with the stage of every peer as a number, and bounds of a box that a mask can be made of."""
        if isinstance(plan.operations[place], PerPeer):
            raise RuntimeError("boxes of each peer's own are not recorded in graphs; graphs=False would work")
        found = tuple(cast(int, plan.at(self.stages, peer).operations[place].stage) for peer in range(self.peers))
        stage: Any = found[0] if len(set(found)) == 1 else found
        settled = replace(plan.operations[place], stage=stage)
        if isinstance(settled, Paste) and settled.low.ndim == 1:
            # A slice's bounds would be frozen into the graph; a mask's are read when it runs.
            settled = replace(settled, low=settled.low[None], high=settled.high[None])
        return settled


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.detach().to(device, copy=True)


def _own_operation(operation: Operation, device: torch.device) -> Operation:
    own: dict[str, Any] = {name: _own(tensor, device) for name, tensor in _tensor_fields(operation)}
    return replace(operation, **own)


def _tensor_fields(operation: Operation) -> list[tuple[str, Tensor]]:
    values = [(field.name, getattr(operation, field.name)) for field in fields(operation)]
    return [(name, value) for name, value in values if isinstance(value, Tensor)]


def _tensors(batch: Batch, plan: MixPlan) -> list[Tensor]:
    """Everything that changes from step to step, in a fixed order."""
    own = [tensor for operation in plan.operations for _, tensor in _tensor_fields(operation)]
    return [batch.images, batch.labels, *(batch.views or ()), *own]


def _key(batch: Batch, plan: MixPlan) -> Hashable:
    """What two steps have to share to run the same kernels on the same memory."""
    kinds = tuple((type(each), each.stage, tuple(name for name, _ in _tensor_fields(each))) for each in plan.operations)
    return kinds, tuple((tensor.shape, tensor.dtype, tensor.stride()) for tensor in _tensors(batch, plan))


class _CudaRecorder:
    """Captures CUDA graphs. They share one pool, because only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: object = None

    def __call__(self, run: Callable[[], Computed]) -> tuple[Replay, Computed]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):  # type: ignore[arg-type]
            computed = run()
        self._pool = self._pool or graph.pool()
        return graph, computed
