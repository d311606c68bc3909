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
    """How the predictions of the peers differ.

    Args:
        pairwise_agreement: P x P, the share of images for which two peers predict the same class.
        pairwise_kl: P x P, KL(row || column) in nats.
        disagreement: share of images for which two peers predict different classes, the mean over pairs; None for one
            peer.
        ensemble_gain: accuracy of the ensemble minus the mean of the peers.
    """

    pairwise_agreement: tuple[tuple[Maybe, ...], ...] = ()
    pairwise_kl: tuple[tuple[Maybe, ...], ...] = ()
    disagreement: Maybe = None
    ensemble_gain: Maybe = None


@dataclass(frozen=True)
class Report:
    """Metrics of every peer and of the ensemble (the mean of their probabilities) on the same images.

    :func:`metamixer.evaluate` sets the first four. :func:`metamixer.assess` sets all of them, and all metrics of the
    scores.

    Args:
        peers: scores of the peers, in the order of the cohort.
        ensemble: score of the ensemble of all peers, including frozen ones.
        agreement: share of images for which all peers predict the same class.
        images: number of images.
        deployed: score of the deployed network, if there is one.
        split: split of the images, ``test`` or ``val``.
        checkpoint: checkpoint of the weights, ``last`` or ``best``.
        classes: names of the classes.
        diversity: how the predictions of the peers differ.
        robustness: accuracies under corruptions and attacks, if measured.
        localization: how well activation maps find objects, if measured.
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
        """The peers, the ensemble, and the deployed network if there is one."""
        return self.rows if self.deployed is None else (*self.rows, self.deployed)

    @property
    def main(self) -> Score:
        """The deployed network, or the ensemble if there is none."""
        return self.ensemble if self.deployed is None else self.deployed

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the first four parts, or the content of ``evaluation.json`` if all were measured."""
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
    """Convert the output of :meth:`Report.as_dict`, read from a file, to a report; missing parts are empty or NaN.

    Raises:
        pydantic.ValidationError: a value has another type or is out of its range.
    """
    if isinstance(found, Mapping) and "networks" in found:
        found = _by_part(found)
    return _reader().validate_python(found)


def _by_part(found: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the layout of ``evaluation.json``, which has all networks in one list, and the diversity in ``peers``."""
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
