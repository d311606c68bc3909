"""The report of an evaluation: metrics in memory and in JSON files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from metamixer.core.json_values import Count, Maybe, Number, plain
from metamixer.evaluation.localization.localize import Localization
from metamixer.evaluation.robustness.robustness import Robustness
from metamixer.metrics.network_scores import Score

FORMAT = "metamixer-evaluation-1"


@dataclass(frozen=True)
class Diversity:
    """How the peers differ.

    Args:
        pairwise_agreement: P x P, the share of images for which two peers name the same class.
        pairwise_kl: P x P, nats: KL(row || column).
        disagreement: the mean over all pairs of the share of images for which they do not agree; None for one peer.
        ensemble_gain: accuracy of the ensemble - mean of the peers.
    """

    pairwise_agreement: tuple[tuple[Maybe, ...], ...] = ()
    pairwise_kl: tuple[tuple[Maybe, ...], ...] = ()
    disagreement: Maybe = None
    ensemble_gain: Maybe = None


@dataclass(frozen=True)
class Report:
    """Metrics of every peer and of the ensemble (the mean of their probabilities) on the same images.

    :func:`metamixer.evaluate` gives the first four. :func:`metamixer.assess` gives all, and scores with their costly
    parts.

    Args:
        peers: in the cohort's order.
        ensemble: all peers, frozen ones included.
        agreement: the share of images on which all peers name the same class.
        images: how many.
        deployed: one more network, where there is one.
        split: the images, ``test`` or ``val``.
        checkpoint: the weights, ``last`` or ``best``.
        classes: their names.
        diversity: how the peers differ.
        robustness: accuracies under corruptions and attacks, where they were asked for.
        localization: how well activation maps find objects, where it was asked for.
    """

    peers: tuple[Score, ...] = ()
    ensemble: Score = field(default_factory=lambda: Score("ensemble", kind="ensemble"))
    agreement: Number = math.nan
    images: Count = 0
    deployed: Score | None = None
    split: str = "test"
    checkpoint: str = "last"
    classes: tuple[str, ...] = ()
    diversity: Diversity | None = None
    robustness: Robustness | None = None
    localization: Localization | None = None

    @property
    def rows(self) -> tuple[Score, ...]:
        """The peers, then the ensemble."""
        return (*self.peers, self.ensemble)

    @property
    def networks(self) -> tuple[Score, ...]:
        """The peers, the ensemble, and the deployed network where there is one."""
        return self.rows if self.deployed is None else (*self.rows, self.deployed)

    @property
    def main(self) -> Score:
        """The deployed network, or else the ensemble."""
        return self.ensemble if self.deployed is None else self.deployed

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the four quick parts, or with the costly ones what ``evaluation.json`` holds."""
        if self.diversity is None:
            return {
                "peers": [score.as_dict() for score in self.peers],
                "ensemble": self.ensemble.as_dict(),
                "agreement": self.agreement,
                "images": self.images,
            }
        return {
            "format": FORMAT,
            "split": self.split,
            "checkpoint": self.checkpoint,
            "images": self.images,
            "classes": list(self.classes),
            "networks": [score.as_dict() for score in self.networks],
            "peers": plain({"agreement": self.agreement} | asdict(self.diversity)),
            "robustness": None if self.robustness is None else self.robustness.as_dict(),
            "localization": None if self.localization is None else self.localization.as_dict(),
        }


def read_report(found: object) -> Report:
    """What :meth:`Report.as_dict` gave, as it is read from a file; what is missing is empty or NaN.

    Raises:
        pydantic.ValidationError: a value has another type or is out of its range.
    """
    if isinstance(found, Mapping) and "networks" in found:
        found = _by_part(found)
    return _reader().validate_python(found)


def _by_part(found: Mapping[str, Any]) -> dict[str, Any]:
    """The layout of ``evaluation.json``: all networks in one list, and under ``peers`` how they differ."""
    networks = found["networks"] if isinstance(found["networks"], list) else [found["networks"]]
    kinds = [each.get("kind") if isinstance(each, dict) else None for each in networks]
    others = {str(kind): each for kind, each in zip(kinds, networks, strict=True) if kind in ("ensemble", "deployed")}
    alike = found.get("peers")
    return {
        **found,
        **others,
        "peers": [each for kind, each in zip(kinds, networks, strict=True) if kind not in others],
        "agreement": alike.get("agreement") if isinstance(alike, dict) else None,
        "diversity": alike,
    }


@cache
def _reader() -> TypeAdapter[Report]:
    return TypeAdapter(Report)
