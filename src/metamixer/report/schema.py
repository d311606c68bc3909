"""What the JSON files of runs look like, read with care: keys may be missing, numbers may be NaN."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_LARGEST = 1e100  # beyond it nothing is measured, and sums of such numbers overflow


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and abs(value) < _LARGEST else None


Number = Annotated[float | None, Field(strict=True), AfterValidator(_finite)]
"""A finite number, or None where it is missing, NaN or infinite."""


Count = Annotated[int, Field(ge=0, le=10**12)]
"""How many of something."""


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Score(_Read):
    """One network's figures, of ``report.json`` and ``metrics.jsonl``."""

    name: str
    accuracy: Number = None
    top5: Number = None
    nll: Number = None


class Figures(_Read):
    """Every peer and the ensemble, on one split."""

    peers: tuple[Score, ...] = ()
    ensemble: Score | None = None
    agreement: Number = None
    images: Count = 0

    @property
    def rows(self) -> tuple[Score, ...]:
        """The peers, then the ensemble."""
        return self.peers if self.ensemble is None else (*self.peers, self.ensemble)


class Ended(_Read):
    """``report.json``: how a run ended."""

    split: str = "test"
    last_epoch: Figures = Figures()
    deployed: Score | None = None
    best: dict[str, Any] = {}
    notes: tuple[str, ...] = ()


class Epoch(_Read):
    """A line of ``metrics.jsonl``; see :class:`metamixer.training.callbacks.EpochRecord`."""

    epoch: Count
    lr: Number = None
    terms: dict[str, tuple[Number, ...]] = {}
    train_accuracy: tuple[Number, ...] = ()
    val: Figures | None = None
    images_per_second: Number = None
    seconds: Number = None


class Environment(_Read):
    """``environment.json``: versions and machine."""

    python: str = ""
    platform: str = ""
    processor: str = ""
    gpu: str | None = None
    versions: dict[str, str | None] = {}


class Calibration(_Read):
    """Figures of the probabilities after temperature scaling."""

    nll: Number = None
    brier: Number = None
    ece: Number = None
    gap: Number = None


class Reliability(_Read):
    """Images by their confidence: ``edges`` has one more than the others."""

    edges: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    count: tuple[Count, ...] = ()
    confidence: tuple[Number, ...] = ()
    accuracy: tuple[Number, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether there are bins, and as many of each as there should be."""
        bins = len(self.count)
        return bool(bins) and len(self.edges) == bins + 1 and bins == len(self.confidence) == len(self.accuracy)

    @property
    def bars(self) -> list[tuple[float, float, int, float, float]]:
        """Of every bin with images: its edges, the number of images, their accuracy and mean confidence."""
        columns = (self.edges, self.edges[1:], self.count, self.accuracy, self.confidence)
        return [
            (low, high, count, accuracy, confidence)
            for low, high, count, accuracy, confidence in zip(*columns, strict=False)
            if count and accuracy is not None and confidence is not None
        ]


class Network(Calibration):
    """One network in ``evaluation.json``."""

    name: str
    kind: str = "peer"
    accuracy: Number = None
    top5: Number = None
    temperature: Number = None
    calibrated: Calibration | None = None
    per_class: tuple[Number, ...] = ()
    confusion: tuple[tuple[Count, ...], ...] = ()
    reliability: Reliability = Reliability()


class Peers(_Read):
    """How much the peers are alike; the matrices are peers by peers."""

    agreement: Number = None
    disagreement: Number = None
    ensemble_gain: Number = None
    pairwise_agreement: tuple[tuple[Number, ...], ...] = ()
    pairwise_kl: tuple[tuple[Number, ...], ...] = ()


class Corruptions(_Read):
    """Accuracies by kind, network and severity 1 to 5; the mean of all by network."""

    kinds: dict[str, dict[str, tuple[Number, ...]]] = {}
    mean: dict[str, Number] = {}


class Attack(_Read):
    """Accuracies by network under images moved by at most ``eps`` (1 = the range of a pixel)."""

    eps: Number = None
    accuracy: dict[str, Number] = {}


class Robustness(_Read):
    """Of every network, where it was asked for; ``clean`` are the accuracies on the same ``images`` as they are."""

    images: int | None = None
    clean: dict[str, Number] = {}
    corruptions: Corruptions | None = None
    attacks: dict[str, Attack] = {}


class Located(_Read):
    """How well the activation maps of one network find the objects."""

    name: str = ""
    max_box_acc_v2: Number = None
    max_box_acc: dict[str, Number] = {}
    pointing: Number = None
    energy: Number = None


class Localization(_Read):
    """Of every network, and of a box that is always in the middle."""

    method: str = ""
    images: Count = 0
    networks: tuple[Located, ...] = ()
    centre_box: Located | None = None
    map_agreement: tuple[tuple[Number, ...], ...] = ()


class Evaluation(_Read):
    """``evaluation.json``, which ``metamixer evaluate`` writes."""

    format: str = ""
    split: str = "test"
    checkpoint: str = "last"
    images: Count = 0
    classes: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    peers: Peers | None = None
    robustness: Robustness | None = None
    localization: Localization | None = None

    def named(self, name: str, kind: str) -> Network | None:
        """The network of this name and kind."""
        return next((one for one in self.networks if (one.name, one.kind) == (name, kind)), None)

    @property
    def main(self) -> Network | None:
        """The deployed network, or else the ensemble, or else the first."""
        for kind in ("deployed", "ensemble"):
            for one in self.networks:
                if one.kind == kind:
                    return one
        return self.networks[0] if self.networks else None
