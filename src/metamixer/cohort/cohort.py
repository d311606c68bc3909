"""Peers trained on the same batch; mixing inside the networks needs no change to them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from metamixer.cohort.batch_axis import find_axes
from metamixer.cohort.concurrency import PARALLEL, Parallel, in_threads
from metamixer.cohort.first_stages import FirstStages
from metamixer.cohort.folder_exchange import exchange
from metamixer.cohort.hooks import Tap, install, tensors
from metamixer.cohort.image_types import type_conflict
from metamixer.cohort.peer_exchange import Elsewhere, PeerExchange
from metamixer.cohort.recomputation import recompute
from metamixer.cohort.shared_trunk import Trunk, counters_left_out, trunk_of
from metamixer.cohort.stages import check_stages, find_stages
from metamixer.core.eval_mode import evaluating
from metamixer.core.layout import Layout, channels_first, stage_layouts
from metamixer.core.plan import MixPlan
from metamixer.core.types import Outputs, logits_of, pooled

Compile = Literal[False, "default", "reduce-overhead", "max-autotune"]
"""Modes of ``torch.compile``; the last two record CUDA graphs on a GPU. False: no compilation."""

_CUDA_GRAPHS = ("reduce-overhead", "max-autotune")


class Cohort(nn.Module):
    """Networks that learn together, with one forward pass each.

    Args:
        networks: the peers, of one or several architectures, with the same classes. Each maps ``(B, C, ...)`` images
            to ``(B, classes)`` logits (or to an object or dict with ``logits``).
        stages: for each peer the paths of the modules whose outputs end its stages, or None to find them. Peers of one
            architecture can be given one flat list of paths.
        frozen: the peers that do not learn, such as a pretrained teacher. They stay in evaluation mode and compute no
            gradients.
        shadows: add a copy of every network, for methods that compare with averaged or earlier weights. The copies are
            the frozen peers P to 2P-1; :meth:`update_shadows` moves their weights.
        parallel: ``none`` runs peers one after the other; ``threads`` runs them in parallel on the CPU, with the cores
            divided among them.
        compile: mode of ``torch.compile`` for the peers (:data:`Compile`); True is ``default``, False is off. Each
            stage at which a plan mixes has its own graph, which is compiled on first use.
        checkpointing: recompute the blocks of learning peers in the backward pass instead of storing their activations
            (activation checkpointing): less memory, about a third more time, the same gradients.

    Peers with different numbers of stages are aligned by relative depth: the cohort has as many stages as its
    shallowest peer, and stage k of K is stage ``round(k * n / K)`` of a peer that has n.

    Raises:
        ValueError: no network, the same network twice, or a wrong argument. The forward pass raises it for peers in
            threads that draw random numbers in training, such as dropout: the order of the draws would be arbitrary.
        StagesNotFound: no stages were found, or a path does not exist; the message says what to pass.

    >>> peers = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)) for _ in range(2)]
    >>> Cohort(peers, stages=["1"])(torch.zeros(5, 3, 8, 8)).logits.shape
    torch.Size([2, 5, 10])
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        stages: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
        frozen: Sequence[int] = (),
        shadows: bool = False,
        parallel: Parallel = "none",
        compile: Compile | bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("a cohort needs at least one network, two to learn from each other")
        if len({id(network) for network in networks}) < len(networks):
            raise ValueError("one network is in the list twice: peers that share weights cannot teach each other")
        if wrong := [index for index in frozen if not 0 <= index < len(networks)]:
            raise ValueError(f"frozen={wrong}: the peers are numbered 0 to {len(networks) - 1}")
        if parallel not in PARALLEL:
            raise ValueError(
                f"parallel={parallel!r}: accepted are {', '.join(PARALLEL)}; on a GPU, compile='reduce-overhead' lets "
                "torch record CUDA graphs"
            )
        if compile is not True and compile not in get_args(Compile):
            raise ValueError(f"compile={compile!r}: accepted are {', '.join(map(str, get_args(Compile)))}")
        self.parallel: Parallel = parallel
        self.compiled: Compile = "default" if compile is True else compile
        self._compiled: dict[int, Callable[[Tensor], Any]] = {}
        self._layouts: dict[int, tuple[Layout, ...]] = {}
        self._drew_nothing = False
        self._alone: int | None = None
        self._held: dict[int, FirstStages] = {}
        self._exchange: PeerExchange | None = None
        if shadows and frozen:
            raise ValueError("shadows follow peers that learn: frozen peers and shadows do not go together")
        self.shadows = len(networks) if shadows else 0
        # One deepcopy for all, so that shadows share the modules that their peers share.
        self.peers = nn.ModuleList([*networks, *(copy.deepcopy(list(networks)) if shadows else ())])
        self.frozen = frozenset(frozen) | frozenset(range(len(networks), len(self.peers)))
        given = self._per_peer(stages, len(networks)) * (2 if shadows else 1)
        paths = [
            tuple(check_stages(network, named)) if named else find_stages(network)
            for network, named in zip(self.peers, given, strict=True)
        ]
        self.stages = min(len(found) for found in paths)
        self.stage_paths = tuple(_align(found, self.stages) for found in paths)
        # Kept for pickling: unpickling a handle reserves its id in the new process. Otherwise the next hook registered
        # on the module would replace the mixing point, and nothing would be mixed.
        self._handles: list[RemovableHandle] = []
        self._taps = [Tap() for _ in self.peers]
        for network, found, tap in zip(self.peers, self.stage_paths, self._taps, strict=True):
            self._handles += install(network, found, tap)
        self._trunks = _trunks(self.peers)
        self._branches = self._group()
        self.shared = self._count_shared()
        if self._trunks and parallel != "none":
            raise ValueError(f"parallel={parallel!r}: branches wait for their shared trunk; expected parallel='none'")
        if checkpointing and self.compiled:
            raise ValueError("checkpointing=True and compile exclude each other; accepted: one of them")
        for index in self.learners if checkpointing else ():
            recompute(self.peers[index], self.stage_paths[index], self._taps[index], random=parallel == "none")
        for index in self.frozen:
            self.peers[index].requires_grad_(False)
        self.train(self.training)

    def _per_peer(
        self, stages: Sequence[str] | Sequence[Sequence[str] | None] | None, count: int
    ) -> list[Sequence[str] | None]:
        if stages is None:
            return [None] * count
        if all(isinstance(path, str) for path in stages):
            return [cast(Sequence[str], stages)] * count
        if len(stages) != count:
            raise ValueError(f"stages are given for {len(stages)} peers, there are {count}")
        return [[given] if isinstance(given, str) else given for given in stages]

    def _count_shared(self) -> int:
        """The number of first stages that end in a module shared by all peers (shadows aside)."""
        first, *others = list(zip(self.peers, self.stage_paths, strict=True))[: len(self.peers) - self.shadows]
        shared = 0
        for stage, path in enumerate(first[1]):
            module = first[0].get_submodule(path)
            if not others or any(module is not peer.get_submodule(paths[stage]) for peer, paths in others):
                break
            shared += 1
        return shared

    def _replicate_for_data_parallel(self) -> Cohort:
        """Refuse ``nn.DataParallel``: its replicas run in threads and would share the mixing points of one peer."""
        raise RuntimeError(
            "a Cohort cannot be replicated by nn.DataParallel; one process for each device works: Fabric, "
            "DistributedDataParallel, or CUDA_VISIBLE_DEVICES=0 for a single one"
        )

    @property
    def branched(self) -> bool:
        """Whether any peers share a trunk."""
        return bool(self._trunks)

    @property
    def records_cuda_graphs(self) -> bool:
        """Whether the mode of ``torch.compile`` records CUDA graphs."""
        return self.compiled in _CUDA_GRAPHS

    @property
    def here(self) -> tuple[int, ...]:
        """The peers in this process: all of them, unless they are :meth:`spread`."""
        return tuple(range(len(self.peers))) if self._exchange is None else tuple(self._exchange.own)

    def owners(self, groups: int) -> list[list[int]]:
        """The peers of each of ``groups`` processes; a shadow is in the process of its peer.

        Raises:
            ValueError: the peers cannot be divided evenly, or not at all.
        """
        count = self.shadows or len(self.peers)
        if count % groups:
            raise ValueError(f"{count} peers cannot be divided evenly among {groups} groups of processes")
        if self.branched:
            raise ValueError("branches share a trunk, which only one process can have")
        if self.parallel != "none":
            raise ValueError(f"parallel={self.parallel!r} is for peers of one process")
        each = count // groups
        return [
            [index for index in range(len(self.peers)) if self._led_by(index) // each == group]
            for group in range(groups)
        ]

    def spread(self, exchange: PeerExchange) -> None:
        """Keep only the peers that this process owns, and get the outputs of the others from ``exchange``.

        Outputs then have the logits of all peers, their features if ``exchange`` sends them, and the stages of the
        peers in this process. The memory of the other peers is freed.
        """
        self._exchange = exchange
        for index in set(range(len(self.peers))) - set(exchange.own):
            self.peers[index] = Elsewhere()

    @torch.no_grad()
    def update_shadows(self, decay: float) -> None:
        """Set ``shadow = decay * shadow + (1 - decay) * peer`` for weights and statistics; 0 copies the peer.

        Raises:
            ValueError: the cohort has no shadows.
        """
        if not self.shadows:
            raise ValueError("there are no shadows: Cohort(networks, shadows=True) has them")
        moved: set[int] = set()  # a trunk that shadows share must not move once for each of them
        for peer, shadow in zip(self.peers[: self.shadows], self.peers[self.shadows :], strict=True):
            own, followed = shadow.state_dict(keep_vars=True), peer.state_dict()
            for name, value in own.items():
                if id(value) in moved:
                    continue
                moved.add(id(value))
                if value.is_floating_point():
                    value.lerp_(followed[name], 1 - decay)
                else:
                    value.copy_(followed[name])

    @torch.no_grad()
    def exchange_weights(self, folder: Path, number: int, others: Sequence[int]) -> list[int]:
        """Write the weights of the learning peer to a folder, and read those of the frozen peers.

        Args:
            folder: a folder that the processes of all peers can access.
            number: number of this process.
            others: numbers of the processes that train the frozen peers, in the order of the frozen peers.

        Returns:
            The indices in ``others`` of those whose weights were read; the other peers are unchanged.

        Raises:
            ValueError: the weights do not fit the network.
        """
        frozen = {other: self.peers[index] for other, index in zip(others, sorted(self.frozen), strict=True)}
        return [others.index(other) for other in exchange(folder, number, self.peers[self.learners[0]], frozen)]

    def hold(self, peer: int, part: FirstStages | None) -> bool:
        """Freeze a part of a peer, with its batch norm in evaluation mode, until another part or None is passed.

        Returns:
            Whether that changed anything.
        """
        before = self._held.pop(peer, None)
        if part is not None:
            self._held[peer] = part
        if before is part:
            return False
        for each, learns in ((before, True), (part, False)):
            for weight in each.parameters if each is not None else ():
                weight.requires_grad_(learns)
        self.train(self.training)
        return True

    @property
    def learners(self) -> tuple[int, ...]:
        """The peers that learn."""
        return tuple(index for index in range(len(self.peers)) if index not in self.frozen)

    @contextmanager
    def learning(self, peer: int | None) -> Iterator[None]:
        """Record the graph of one peer only inside the block, for sequential updates; None: of all peers."""
        self._alone = peer
        try:
            yield
        finally:
            self._alone = None

    def train(self, mode: bool = True) -> Cohort:
        """Set the mode of the peers that learn; frozen peers and parts stay in evaluation mode."""
        super().train(mode)
        for index in self.frozen:
            self.peers[index].eval()
        for part in self._held.values():
            for norm in part.norms:
                norm.eval()
        return self

    def forward(self, images: Tensor | Sequence[Tensor], plan: MixPlan | None = None) -> Outputs:
        """``(B, C, ...)`` images -> :class:`Outputs`, each peer mixed by ``plan`` (None: no mixing).

        A sequence of images gives each peer its own augmentation of the same batch; shadows see those of their peers.
        Logits are at least float32, even if the networks compute in lower precision: a softmax in half precision
        loses the information in small probabilities.

        Raises:
            ValueError: the peers have different numbers of classes, a stage was not reached, or an input is not valid.
        """
        settled = [(plan or MixPlan()).at(self.stages, self._led_by(index)) for index in range(len(self.peers))]
        shown = _mix_images(settled, self._views(images))
        if not len(shown[0]):
            raise ValueError("the batch has no images; accepted: at least one")
        inside = [each.after_images() for each in settled]
        self._check_trunks(inside)
        mixes = any(each.operations for each in inside)
        if (mixes or torch.is_grad_enabled()) and not torch.compiler.is_compiling():
            self._find_axes(shown, mixes)
        with ExitStack() as stack:
            for trunk in dict.fromkeys(self._trunks.values()):
                stack.enter_context(trunk.computed_once())
            ran = self._run(inside, shown)
        found = self._exchange(ran) if self._exchange is not None else cast(list[tuple[Tensor, ...]], ran)
        logits = [each[0] for each in found]
        if len({each.shape for each in logits}) > 1:
            shapes = ", ".join(f"peer {index} {tuple(each.shape)}" for index, each in enumerate(logits))
            raise ValueError(f"peers need the same classes to teach each other, their logits are: {shapes}")

        def again(index: int, other: Tensor, training: bool = True) -> Tensor:
            with ExitStack() as stack:
                if index in self._trunks:  # its gradient is divided as in the previous pass
                    stack.enter_context(self._trunks[index].computed_once())
                if training:
                    return self._forward_peer(index, other, inside[index])[0]
                stack.enter_context(evaluating(self.peers[index]))
                return self._forward_peer(index, other, inside[index], learns=True)[0]

        return Outputs(
            logits=torch.stack(logits),
            stages=tuple(each[2:] for each in found),
            features=tuple(each[1] for each in found),
            frozen=tuple(sorted(self.frozen)),
            shadows=self.shadows,
            shared=self.shared,
            images=tuple(shown),
            run=again,
            layouts=lambda: [self._layout(index, own) for index, own in enumerate(shown)],
            without_graph=frozenset().union(*(self._taps[index].without_graph for index in self.learners)),
        )

    def _layout(self, index: int, images: Tensor) -> tuple[Layout, ...]:
        """The layouts of the stages of a local peer, found once by a forward pass; empty for a peer elsewhere."""
        if index not in self.here:
            return ()
        if index not in self._layouts:
            self._layouts[index] = stage_layouts(self.peers[index], images.detach(), self.stage_paths[index])
        return self._layouts[index]

    def _find_axes(self, images: Sequence[Tensor], mixes: bool) -> None:
        """Find the batch axis of stage outputs, before the first pass that learns or mixes.

        Raises:
            ValueError: the plan mixes, and a stage cannot be mixed.
        """
        for index in self.here:
            tap = self._taps[index]
            if tap.axes is None:
                find_axes(self.peers[index], images[index], tap, self.stage_paths[index], f"peer {index}")
            if mixes and tap.refused:
                raise ValueError(tap.refused)

    def _led_by(self, index: int) -> int:
        """The peer that a shadow follows, or the peer itself; both use the same plan."""
        return index % self.shadows if self.shadows else index

    def _views(self, images: Tensor | Sequence[Tensor]) -> list[Tensor]:
        if isinstance(images, Tensor):
            return [images] * len(self.peers)
        views = [*images, *(images if self.shadows else ())]
        if len(views) != len(self.peers):
            learn = len(self.peers) - self.shadows
            raise ValueError(f"there are {len(images)} views of the images for {learn} peers")
        return views

    def _group(self) -> list[tuple[list[int], int]]:
        """The branches of each trunk, and the number of stages that end in the trunk."""
        found = []
        for trunk in dict.fromkeys(self._trunks.values()):
            branches = [index for index, own in self._trunks.items() if own is trunk]
            some, other = (self.peers[index] for index in branches[:2])
            within = {
                tuple(path for path in self.stage_paths[index] if some.get_submodule(path) is other.get_submodule(path))
                for index in branches
            }
            if len(within) > 1:
                raise ValueError(
                    f"branches on one trunk need the same stages in it, not {' and '.join(map(str, within))}"
                )
            found.append((branches, len(within.pop())))
        return found

    def _check_trunks(self, plans: Sequence[MixPlan]) -> None:
        """Raise ValueError if branches are mixed differently in their trunk, which runs once for all."""
        for branches, stages in self._branches:
            below = {
                tuple(operation.stage for operation in plans[index].operations if cast(int, operation.stage) <= stages)
                for index in branches
            }
            if len(below) > 1:
                raise ValueError(
                    "branches share their trunk, so one stage is drawn for all of them there: mixer.stage_draws=1"
                )

    def _run(self, plans: list[MixPlan], images: list[Tensor]) -> Sequence[tuple[Tensor, ...] | None]:
        """Logits, features and stages of every peer in this process; None for the others."""

        def work(index: int, own: Tensor) -> tuple[Tensor, ...]:
            return self._forward_peer(index, own, plans[index])

        device = images[0].device.type
        if len(self.peers) > 1 and self.parallel == "threads" and device == "cpu":
            before = torch.get_rng_state() if self.training and not self._drew_nothing else None
            found = in_threads(work, images)
            if before is not None and not torch.equal(before, torch.get_rng_state()):
                raise ValueError(
                    "a peer draws random numbers as it trains (dropout, stochastic depth): in threads the order of the "
                    "draws would be chance, and no run could be repeated; expected parallel='none'"
                )
            self._drew_nothing = self._drew_nothing or before is not None
            return found
        here = self.here
        return [work(index, own) if index in here else None for index, own in enumerate(images)]

    def _forward_peer(
        self, index: int, images: Tensor, plan: MixPlan, learns: bool | None = None
    ) -> tuple[Tensor, ...]:
        if learns is None:
            learns = index not in self.frozen and self._alone in (None, index)
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()), self._taps[index].following(plan) as tap:
            if index in self._trunks:
                # A branch with its own view or box, or with another gradient mode, recomputes the trunk.
                self._trunks[index].begin(images)
            try:
                output = self._call(index, images)
            except RuntimeError as error:
                if why := type_conflict(self.peers[index], images):
                    raise ValueError(f"peer {index} ({type(self.peers[index]).__name__}): {why}") from error
                raise
            seen, features = tuple(tap.seen), tap.features
        if [stage for stage, _ in seen] != list(range(1, self.stages + 1)):
            raise ValueError(
                f"peer {index} ran {len(seen)} stages in one forward pass, in the order "
                f"{[stage for stage, _ in seen]}: each of {', '.join(self.stage_paths[index])} has to run exactly once "
                "and in this order"
            )
        logits = _logits(output, len(images), f"peer {index} ({type(self.peers[index]).__name__})")
        if features is None or features.ndim != 2:  # no linear layer, or one that sees every position
            last = seen[-1][1]
            features = pooled(channels_first(last, self._layout(index, images)[-1]) if last.ndim > 2 else last)
        found = (logits.to(torch.promote_types(logits.dtype, torch.float32)), features, *(each for _, each in seen))
        # CUDA graphs reuse their output memory; without gradients the graph of the next peer may overwrite it.
        return tuple(each.clone() for each in found) if self.records_cuda_graphs and logits.is_cuda else found

    def _call(self, index: int, images: Tensor) -> Any:
        if not self.compiled:
            return self.peers[index](images)
        if index not in self._compiled:
            self._compiled[index] = torch.compile(self.peers[index], mode=self.compiled)
        # By default a hook added after the first call is silently ignored, and only eight graphs of the same code
        # (which peers of one architecture share) are compiled; the rest run uncompiled.
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False, recompile_limit=64):
            return self._compiled[index](images)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        missing: list[str] = rest[2]
        missing += counters_left_out(self, state_dict, prefix)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # a copy compiles its own networks


def _logits(output: Any, batch: int, name: str) -> Tensor:
    """The logits in the output of a network; ValueError if there are none."""
    logits = logits_of(output)
    if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == batch:
        return logits
    found = [f"{type(output).__name__}", *(f"of {tuple(each.shape)}" for each in tensors(output)[:4])]
    raise ValueError(
        f"{name} returns a {' '.join(found)} for {batch} images; accepted: logits ({batch}, classes), or an object or "
        "a dict that has them as `logits`"
    )


def _mix_images(plans: Sequence[MixPlan], images: Sequence[Tensor]) -> list[Tensor]:
    """The mixed images of each peer. Peers with the same images and operations share one result, as is usual."""
    mixed: dict[tuple[int, ...], Tensor] = {}
    found = []
    for plan, own in zip(plans, images, strict=True):
        acting = [operation for operation in plan.operations if operation.stage == 0]
        key = (id(own), *(id(operation.drawn) for operation in acting))
        if key not in mixed:
            mixed[key] = plan.apply(own, 0)
        found.append(mixed[key])
    return found


def _trunks(peers: nn.ModuleList) -> dict[int, Trunk]:
    """The trunk of each peer that shares one with another peer of the cohort."""
    found = {index: shared[0] for index, peer in enumerate(peers) if (shared := trunk_of(peer)) is not None}
    trunks = list(found.values())
    return {index: trunk for index, trunk in found.items() if trunks.count(trunk) > 1}


def _align(paths: tuple[str, ...], count: int) -> tuple[str, ...]:
    """``count`` of the paths at equal relative depths, the last one included."""
    return tuple(paths[round(k * len(paths) / count) - 1] for k in range(1, count + 1))
