"""The mix plan of a step: which samples are mixed with which, how, and at which stage of the networks.

A mixer draws the plan once and all peers use it. Images, activations and targets are mixed by the same operations, so
labels always match their images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import index
from typing import Protocol, cast

import torch
from torch import Tensor

from metamixer.core.labels import soft_targets
from metamixer.core.mixing import blend, box_share, paste

Stage = int | float
"""Where an operation is applied: 0 is the images, ``k`` the output of the k-th stage. A float in [0, 1) is a relative
depth: networks with K stages mix at ``int(depth * K)``. A uniform depth is then a uniform choice among the images and
all stage outputs but the last, and it can be drawn without knowing the networks."""


@dataclass(frozen=True)
class Blend:
    """``lam * x + (1 - lam) * x[partner]`` of whole samples (mixup, arXiv 1710.09412; manifold mixup, 1806.05236).

    Args:
        lam: 0-d or ``(B,)`` float, the share that a sample keeps.
        partner: ``(B,)`` int64, rows of the batch; all mixers of this package draw a permutation.
        stage: where to mix; a tuple has one stage per peer.
    """

    lam: Tensor
    partner: Tensor
    stage: Stage | tuple[Stage, ...] = 0

    @property
    def drawn(self) -> Tensor:
        """A tensor that identifies the draw: the same object for all peers."""
        return self.lam

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, ...)`` -> ``(B, ...)``, images or activations."""
        return blend(x, self.lam, self.partner)

    def mix_targets(self, targets: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, C)``: the labels, weighted by the shares of the samples."""
        return blend(targets, self.lam, self.partner)


@dataclass(frozen=True)
class Paste:
    """A box of another image pasted at the same position (CutMix, arXiv 1905.04899), at the input.

    Args:
        low, high: bounds of the box, int64 on the CPU: ``low <= i < high`` on each of the S spatial axes. ``(S,)``: one
            box for the batch; ``(B, S)``: one per sample; ``(1, S)``: one for the batch, on any device.
        size: the S spatial sizes for which the box was drawn.
        partner: ``(B,)`` int64, the rows from which boxes are pasted; None if ``source`` is given.
        source: ``(B, C, *size)`` companions: images from outside the batch with the same labels, pasted row by row.
    """

    low: Tensor
    high: Tensor
    size: tuple[int, ...]
    partner: Tensor | None = None
    source: Tensor | None = None

    stage: Stage = 0

    @property
    def drawn(self) -> Tensor:
        """A tensor that identifies the draw: the same object for all peers."""
        return self.low

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, *size)`` -> ``(B, C, *size)``; ValueError for images of another size."""
        if tuple(x.shape[2:]) != self.size:
            raise ValueError(f"the box was drawn for images of size {self.size}, these are {tuple(x.shape[2:])}")
        return paste(x, x if self.source is None else self.source, self.partner, self.low, self.high)

    def mix_targets(self, targets: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, C)``: the labels, weighted by the pasted area; unchanged for companions."""
        if self.partner is None:
            return targets
        share = box_share(self.low, self.high, self.size).to(targets)
        weight = share if share.ndim == 0 else share[:, None]
        return torch.lerp(targets, targets.index_select(0, self.partner.to(targets.device)), weight)


@dataclass(frozen=True)
class PerPeer:
    """A different box for each peer, all of the same area, so that the images of all peers have one label (CutnMix).

    Args:
        pastes: one per peer; shadows use those of their peers.
    """

    pastes: tuple[Paste, ...]

    stage: Stage = 0

    @property
    def drawn(self) -> Tensor:
        """A tensor that identifies the draw."""
        return self.pastes[0].low

    def __call__(self, x: Tensor) -> Tensor:
        """Paste the box of the first peer; :meth:`MixPlan.at` selects that of another peer."""
        return self.pastes[0](x)

    def mix_targets(self, targets: Tensor) -> Tensor:
        """``(B, C)`` -> ``(B, C)``: the same for all peers, because all boxes have the same area."""
        return self.pastes[0].mix_targets(targets)


Operation = Blend | Paste | PerPeer


@dataclass(frozen=True)
class MixPlan:
    """The operations applied to one batch, in order, each at its stage. ``MixPlan()`` mixes nothing.

    ``+`` joins plans: MetaMixer joins a local and a global one.

    >>> plan = MixPlan((Blend(torch.tensor(0.75), torch.tensor([1, 0])),))
    >>> plan.targets(torch.tensor([0, 2]), num_classes=3)
    tensor([[0.7500, 0.0000, 0.2500],
            [0.2500, 0.0000, 0.7500]])
    >>> plan.apply(torch.tensor([[[1.0]], [[5.0]]]), stage=0).flatten()
    tensor([2., 4.])
    """

    operations: tuple[Operation, ...] = ()

    def __add__(self, other: MixPlan) -> MixPlan:
        return MixPlan(self.operations + other.operations)

    def apply(self, x: Tensor, stage: int) -> Tensor:
        """Apply the operations of ``stage`` to a tensor: ``(B, ...)`` -> ``(B, ...)``.

        Raises:
            ValueError: the stage of an operation is relative or per peer; call :meth:`at` first.
        """
        for operation in self.operations:
            try:
                acts = index(cast(int, operation.stage)) == stage
            except TypeError:
                raise ValueError(
                    f"stage {operation.stage} depends on the network: plan.at(stages=K) settles it"
                ) from None
            if acts:
                x = operation(x)
        return x

    def after_images(self) -> MixPlan:
        """The operations inside the networks: those that are not at stage 0."""
        return MixPlan(tuple(operation for operation in self.operations if operation.stage != 0))

    def targets(self, labels: Tensor, num_classes: int) -> Tensor:
        """Soft targets: ``(B,)`` class indices or ``(B, num_classes)`` soft labels -> ``(B, num_classes)`` float32.

        The operations are applied in order to the one-hot or soft labels; rows sum to 1. Same-class pasting leaves
        one-hot labels unchanged.

        Raises:
            ValueError: the labels have another shape or type, are out of range, or are not a distribution.
        """
        targets = soft_targets(labels, num_classes)
        for operation in self.operations:
            targets = operation.mix_targets(targets)
        return targets

    def within(self, parts: int) -> MixPlan:
        """The plan with partners restricted to ``parts`` interleaved parts of the batch: sample i is in i mod parts.

        Processes and micro-batches that see one part each can then apply the plan, and one process with the whole batch
        can reproduce them. Everything else stays as drawn for the whole batch: lambda, boxes, stages. Each sample gets
        the first sample of its own part along the cycle partner, partner of the partner, and so on. The partners are
        therefore still a random permutation, and partners of the same class stay in that class.

        >>> plan = MixPlan((Blend(torch.tensor(0.5), torch.tensor([1, 2, 3, 0])),))
        >>> plan.within(2).operations[0].partner
        tensor([2, 3, 0, 1])
        """
        if parts == 1:
            return self
        return MixPlan(
            tuple(_replaced(operation, lambda paste: _within(paste, parts)) for operation in self.operations)
        )

    def part(self, number: int, parts: int, companions: Tensor | None = None) -> MixPlan:
        """The plan for the samples ``number``, ``number + parts``, ... of the batch; call :meth:`within` first.

        Args:
            number: index of the part, from 0.
            parts: number of parts.
            companions: companions of this part, if the plan was drawn without those of the other parts; None: take them
                from the plan.
        """
        if parts == 1 and companions is None:
            return self

        def own(operation: Blend | Paste) -> Blend | Paste:
            partner = None if operation.partner is None else operation.partner[number::parts] // parts
            if isinstance(operation, Blend):
                lam = operation.lam if operation.lam.ndim == 0 else operation.lam[number::parts]
                return replace(operation, lam=lam, partner=cast(Tensor, partner))
            low, high, source = operation.low, operation.high, operation.source
            if low.ndim == 2 and len(low) > 1:
                low, high = low[number::parts], high[number::parts]
            if source is not None:
                source = source[number::parts] if companions is None else companions
            return replace(operation, low=low, high=high, partner=partner, source=source)

        return MixPlan(tuple(_replaced(operation, own) for operation in self.operations))

    def at(self, stages: int, peer: int = 0) -> MixPlan:
        """The plan for one peer with ``stages`` stages: relative and per-peer stages become stage numbers.

        Raises:
            ValueError: the network has fewer stages, or no stage was drawn for this peer.
        """
        return MixPlan(tuple(_settle(operation, stages, peer) for operation in self.operations))


def _replaced(operation: Operation, change: Callable[[Blend | Paste], Blend | Paste]) -> Operation:
    """The changed operation; for a per-peer operation, every part is changed."""
    if isinstance(operation, PerPeer):
        return replace(operation, pastes=tuple(cast(Paste, change(paste)) for paste in operation.pastes))
    return change(operation)


def _within(operation: Blend | Paste, parts: int) -> Blend | Paste:
    partner = operation.partner
    if partner is None:
        return operation
    place = torch.arange(len(partner), device=partner.device) % parts
    found = partner
    for _ in range(len(partner) + 1):
        if not bool((elsewhere := place[found] != place).any()):
            break
        found = torch.where(elsewhere, partner[found], found)
    else:
        raise ValueError("partners that repeat cannot stay inside of parts of a batch; accepted: a permutation")
    return replace(operation, partner=found)


def _settle(operation: Operation, stages: int, peer: int) -> Operation:
    if isinstance(operation, PerPeer):
        return operation.pastes[peer % len(operation.pastes)]
    stage = operation.stage
    if isinstance(stage, tuple):
        if peer >= len(stage):
            raise ValueError(f"the plan has stages for {len(stage)} peers, this is peer {peer}: draw more of them")
        stage = stage[peer]
    try:
        stage = index(cast(int, stage))  # also numpy's integers
    except TypeError:
        if not 0 <= stage < 1:
            raise ValueError(f"a relative depth lies in [0, 1), not at {stage}") from None
        stage = int(stage * stages)
    if not 0 <= stage <= stages:
        raise ValueError(f"the plan mixes at stage {stage}, but the networks have stages 0 (images) to {stages}")
    if stage == operation.stage and isinstance(operation.stage, int):
        return operation
    return replace(operation, stage=stage)


class Mixer(Protocol):
    """A frozen dataclass of settings that draws plans.

    A mixer with ``wants_companions = False`` never pastes companions, and none are loaded.

    Args of the call:
        images: ``(B, C, ...)``; only shape and device are used.
        labels: ``(B,)`` int64.
        companions: ``(B, C, ...)`` images of the same labels, or None.
        generator: a CPU generator for all draws; None: the global generator of PyTorch.
        progress: the share of training that is done, in [0, 1], for settings that change with it; None: full strength.

    A mixer whose setting ``strength`` is ``"auto"`` takes one more argument, ``strength``: a number in [0, 1] that
    scales its probabilities.
    """

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        companions: Tensor | None = None,
        generator: torch.Generator | None = None,
        progress: float | None = None,
    ) -> MixPlan:
        """Draw the plan of one batch."""
