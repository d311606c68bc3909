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
    """Training settings of one peer.

    Args:
        lr: peak learning rate; None: that of the optimizer.
        weight_decay: weight decay; None: that of the optimizer.
        freeze: number of frozen stages in addition to the stem; 0 freezes the stem only; None freezes nothing.
        freeze_epochs: number of epochs in which they are frozen; None: all.
        stages: paths of the modules whose outputs end its stages; None: find them.
    """

    lr: Positive | None = None
    weight_decay: Weight | None = None
    freeze: Annotated[int, Field(ge=0)] | None = None
    freeze_epochs: Count | None = None
    stages: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


class Freezing:
    """Freezes and releases the first stages of peers.

    Args:
        cohort: the peers of this process.
        peers: settings of each peer, or empty.
        images: two training images.

    Raises:
        ValueError: a peer has fewer stages, or no stem.
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
        """All weights that are frozen in some epoch."""
        return [weight for part, _ in self._parts.values() for weight in part.parameters]

    def follow(self, epoch: int) -> bool:
        """Freeze and release stages for an epoch (counted from 0); returns whether anything changed."""
        changed = False
        for index, (part, epochs) in self._parts.items():
            held = epochs is None or epoch < epochs
            changed |= self.cohort.hold(index, part if held else None)
        return changed
