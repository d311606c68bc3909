"""Training settings of single peers: learning rate, weight decay, frozen stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.first_stages import FirstStages, first_stages
from metamixer.core.ranges import Count, Positive, Weight, check_fields


@dataclass(frozen=True)
class PeerSettings:
    """How one peer learns.

    Args:
        lr: its peak learning rate; None: the optimizer's.
        weight_decay: its weight decay; None: the optimizer's.
        freeze: the stem (0), or the stem and so many stages, do not learn; None: all learns.
        freeze_epochs: for so many epochs; None: for all.
        stages: module paths at whose outputs its stages end; None: found.
    """

    lr: Positive | None = None
    weight_decay: Weight | None = None
    freeze: Annotated[int, Field(ge=0)] | None = None
    freeze_epochs: Count | None = None
    stages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class Freezing:
    """Holds the first stages of peers, epoch by epoch.

    Args:
        cohort: the peers of this process.
        peers: of each peer, or none.
        images: two of the training images.

    Raises:
        ValueError: a peer has fewer stages, or no stem of its own.
    """

    def __init__(self, cohort: Cohort, peers: Sequence[PeerSettings], images: Tensor) -> None:
        self.cohort = cohort
        self._parts: dict[int, tuple[FirstStages, int | None]] = {}
        for index, peer in enumerate(peers):
            if peer.freeze is not None and index in cohort.here and index in cohort.learners:
                found = first_stages(cohort.peers[index], peer.freeze, images, peer.stages)
                self._parts[index] = found, peer.freeze_epochs

    @property
    def weights(self) -> list[nn.Parameter]:
        """All that is held in some epoch."""
        return [weight for part, _ in self._parts.values() for weight in part.parameters]

    def follow(self, epoch: int) -> bool:
        """Freeze and release stages for an epoch (counted from 0); returns whether anything changed."""
        changed = False
        for index, (part, epochs) in self._parts.items():
            held = epochs is None or epoch < epochs
            changed |= self.cohort.hold(index, part if held else None)
        return changed
