"""Peers that look at the same batch, with mixing points inside them that need no change to the networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metamixer.plan import MixPlan
from metamixer.records import Outputs
from metamixer.stages import check_stages, find_stages


class _Tap:
    """What a peer's mixing points share: the plan of the running forward pass, and what they have seen."""

    def __init__(self) -> None:
        self.plan: MixPlan | None = None
        self.seen: list[tuple[int, Tensor]] = []


class _MixingPoint:
    """A forward hook at the end of a stage: mixes by the current plan and records what comes out.

    It is installed once and stays. A hook that is added for a step is silently ignored by a network that was
    compiled before. Without a plan, that is outside of the cohort's own forward pass, it does nothing, so a peer
    can be used, copied, pickled and exported alone.
    """

    def __init__(self, tap: _Tap, stage: int) -> None:
        self.tap = tap
        self.stage = stage

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
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


class Cohort(nn.Module):
    """Two or more networks that learn together; one forward pass for each.

    Args:
        networks: the peers, of the same or of different architectures, with the same classes. Each maps
            ``(B, C, ...)`` images to ``(B, classes)`` logits (or to an object with ``.logits``).
        stages: for each peer the module paths at whose outputs its stages end, or None to find them. One flat list of
            paths serves peers of one architecture.
        frozen: the peers that do not learn, such as a pretrained teacher: they stay in evaluation mode, without
            gradients.

    Peers with different numbers of stages are aligned by relative depth: the cohort has as many stages as its
    shallowest peer, and stage k of K is stage ``round(k * n / K)`` of a peer that has n.

    Raises:
        ValueError: fewer than one network, one network twice, or a stage that does not exist.
        StagesNotFound: no stages were found; the message says what to pass.

    >>> peers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)) for _ in range(2)]
    >>> Cohort(peers, stages=["1"])(torch.zeros(5, 3, 8, 8)).logits.shape
    torch.Size([2, 5, 10])
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        stages: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        frozen: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("a cohort needs at least one network, two to learn from each other")
        if len({id(network) for network in networks}) < len(networks):
            raise ValueError("one network is in the list twice: peers that share weights cannot teach each other")
        if wrong := [index for index in frozen if not 0 <= index < len(networks)]:
            raise ValueError(f"frozen={wrong}: the peers are numbered 0 to {len(networks) - 1}")
        self.peers = nn.ModuleList(networks)
        self.frozen = frozenset(frozen)
        paths = [
            tuple(check_stages(network, given)) if given else find_stages(network)
            for network, given in zip(networks, self._per_peer(stages), strict=True)
        ]
        self.stages = min(len(found) for found in paths)
        self.stage_paths = tuple(_align(found, self.stages) for found in paths)
        # Kept for pickling: a handle that is read in a new process reserves its number there. Without it the next hook
        # that anyone registers on this module would take the mixing point's place, and nothing would be mixed.
        self._handles: list[RemovableHandle] = []
        self._taps = [self._install(network, found) for network, found in zip(networks, self.stage_paths, strict=True)]
        for index in self.frozen:
            self.peers[index].requires_grad_(False)
        self.train(self.training)

    def _per_peer(self, stages: Sequence[str] | Sequence[Sequence[str] | None] | None) -> list[Sequence[str] | None]:
        if stages is None:
            return [None] * len(self.peers)
        if all(isinstance(path, str) for path in stages):
            return [cast(Sequence[str], stages)] * len(self.peers)
        if len(stages) != len(self.peers):
            raise ValueError(f"stages are given for {len(stages)} peers, there are {len(self.peers)}")
        return [[given] if isinstance(given, str) else given for given in stages]

    def _install(self, network: nn.Module, paths: tuple[str, ...]) -> _Tap:
        tap = _Tap()
        for number, path in enumerate(paths, start=1):
            point = _MixingPoint(tap, number)
            self._handles.append(network.get_submodule(path).register_forward_hook(point))
        return tap

    def train(self, mode: bool = True) -> Cohort:
        """Training mode for the peers that learn; the frozen stay as they are used: in evaluation mode."""
        super().train(mode)
        for index in self.frozen:
            self.peers[index].eval()
        return self

    def forward(self, images: Tensor, plan: MixPlan | None = None) -> Outputs:
        """``(B, C, ...)`` images -> :class:`Outputs`, each peer mixed by ``plan`` (None: nothing is mixed).

        Logits are float32 at least, whatever precision the networks compute in: a softmax in half precision
        loses what small probabilities teach.

        Raises:
            ValueError: the peers disagree about the number of classes, or a stage was never reached.
        """
        logits: list[Tensor] = []
        stages: list[tuple[Tensor, ...]] = []
        for index in range(len(self.peers)):
            peer_logits, seen = self._forward_peer(index, images, plan or MixPlan())
            logits.append(peer_logits)
            stages.append(seen)
        if len({each.shape for each in logits}) > 1:
            shapes = ", ".join(f"peer {index} {tuple(each.shape)}" for index, each in enumerate(logits))
            raise ValueError(f"peers need the same classes to teach each other, their logits are: {shapes}")
        return Outputs(torch.stack(logits), tuple(stages))

    def _forward_peer(self, index: int, images: Tensor, plan: MixPlan) -> tuple[Tensor, tuple[Tensor, ...]]:
        settled = plan.at(self.stages, index)
        learns = torch.is_grad_enabled() and index not in self.frozen
        with torch.set_grad_enabled(learns), _following(self._taps[index], settled) as tap:
            output = self.peers[index](settled.apply(images, 0))
            seen = tuple(tap.seen)
        if [stage for stage, _ in seen] != list(range(1, self.stages + 1)):
            raise ValueError(
                f"peer {index} passed {len(seen)} stage ends in one forward pass, in the order "
                f"{[stage for stage, _ in seen]}: each of {', '.join(self.stage_paths[index])} has to run exactly once "
                "and in this order"
            )
        logits = getattr(output, "logits", output)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), tuple(features for _, features in seen)


@contextmanager
def _following(tap: _Tap, plan: MixPlan) -> Iterator[_Tap]:
    tap.plan = plan
    try:
        yield tap
    finally:
        tap.plan, tap.seen = None, []


def _align(paths: tuple[str, ...], count: int) -> tuple[str, ...]:
    """``count`` of the paths at equal relative depths, the last one included."""
    return tuple(paths[round(k * len(paths) / count) - 1] for k in range(1, count + 1))
