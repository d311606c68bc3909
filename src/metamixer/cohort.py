"""Peers that look at the same batch, with mixing points inside them that need no change to the networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metamixer.parallel import PARALLEL, Parallel, in_streams, in_threads
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
        parallel: ``none``: one peer after the other. ``threads``: side by side on the CPU, the cores shared among them.
            ``streams``: side by side on a GPU.
        compile: run the peers through ``torch.compile``. Each stage at which a plan mixes is a graph of its own, so
            there are as many graphs as stages; they are compiled when they first come.

    Peers with different numbers of stages are aligned by relative depth: the cohort has as many stages as its
    shallowest peer, and stage k of K is stage ``round(k * n / K)`` of a peer that has n.

    Raises:
        ValueError: fewer than one network, one network twice, a stage that does not exist, or peers in threads that
            draw random numbers as they train, such as dropout: the order of their draws would be chance.
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
        parallel: Parallel = "none",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("a cohort needs at least one network, two to learn from each other")
        if len({id(network) for network in networks}) < len(networks):
            raise ValueError("one network is in the list twice: peers that share weights cannot teach each other")
        if wrong := [index for index in frozen if not 0 <= index < len(networks)]:
            raise ValueError(f"frozen={wrong}: the peers are numbered 0 to {len(networks) - 1}")
        if parallel not in PARALLEL:
            raise ValueError(f"parallel={parallel!r}: {', '.join(PARALLEL)} would work")
        self.parallel: Parallel = parallel
        self.compiled = compile
        self._compiled: dict[int, Callable[[Tensor], Any]] = {}
        self._drew_nothing = False
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
        settled = [(plan or MixPlan()).at(self.stages, index) for index in range(len(self.peers))]
        found = self._run([each.after_images() for each in settled], _mix_images(settled, images))
        logits = [each[0] for each in found]
        if len({each.shape for each in logits}) > 1:
            shapes = ", ".join(f"peer {index} {tuple(each.shape)}" for index, each in enumerate(logits))
            raise ValueError(f"peers need the same classes to teach each other, their logits are: {shapes}")
        return Outputs(torch.stack(logits), tuple(each[1:] for each in found))

    def _run(self, plans: list[MixPlan], images: list[Tensor]) -> list[tuple[Tensor, ...]]:
        """Logits and stages of every peer."""

        def work(index: int, own: Tensor) -> tuple[Tensor, ...]:
            return self._forward_peer(index, own, plans[index])

        device = images[0].device.type
        if len(self.peers) > 1 and self.parallel == "threads" and device == "cpu":
            before = torch.get_rng_state() if self.training and not self._drew_nothing else None
            found = in_threads(work, images)
            if before is not None and not torch.equal(before, torch.get_rng_state()):
                raise ValueError(
                    "a peer draws random numbers as it trains (dropout, stochastic depth): in threads the order of the "
                    "draws would be chance, and no run could be repeated; parallel='none' would work"
                )
            self._drew_nothing = self._drew_nothing or before is not None
            return found
        if len(self.peers) > 1 and self.parallel == "streams" and device == "cuda":
            return in_streams(work, images)
        return [work(index, own) for index, own in enumerate(images)]

    def _forward_peer(self, index: int, images: Tensor, plan: MixPlan) -> tuple[Tensor, ...]:
        learns = torch.is_grad_enabled() and index not in self.frozen
        with torch.set_grad_enabled(learns), _following(self._taps[index], plan) as tap:
            output = self._call(index, images)
            seen = tuple(tap.seen)
        if [stage for stage, _ in seen] != list(range(1, self.stages + 1)):
            raise ValueError(
                f"peer {index} passed {len(seen)} stage ends in one forward pass, in the order "
                f"{[stage for stage, _ in seen]}: each of {', '.join(self.stage_paths[index])} has to run exactly once "
                "and in this order"
            )
        logits = getattr(output, "logits", output)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), *(features for _, features in seen)

    def _call(self, index: int, images: Tensor) -> Any:
        if not self.compiled:
            return self.peers[index](images)
        if index not in self._compiled:
            self._compiled[index] = torch.compile(self.peers[index])
        # By default a hook that someone adds after the first call would be silently ignored, and after eight graphs
        # of one network's code (peers of one architecture share it) the rest would run uncompiled.
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False, recompile_limit=64):
            return self._compiled[index](images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # a copy compiles its own networks


def _mix_images(plans: Sequence[MixPlan], images: Tensor) -> list[Tensor]:
    """The images of each peer. Mixed once where the plans agree, and they do unless every peer has its own stage."""
    mixed: dict[tuple[int, ...], Tensor] = {}
    found = []
    for plan in plans:
        acting = tuple(place for place, operation in enumerate(plan.operations) if operation.stage == 0)
        if acting not in mixed:
            mixed[acting] = plan.apply(images, 0)
        found.append(mixed[acting])
    return found


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
