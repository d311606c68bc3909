"""All metrics of one network on one set of labelled images, in memory and in JSON files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from torch import Tensor

from metamixer.core.json_values import Count, Maybe, Number, plain
from metamixer.metrics.calibration import Reliability, cooled, fit_temperature, has_temperature, reliability
from metamixer.metrics.classification import accuracy, brier, confusion, nll, per_class, top_k


@dataclass(frozen=True)
class Calibrated:
    """Metrics after temperature scaling, which changes no prediction. Units as in :class:`Score`."""

    nll: Number = math.nan
    brier: Number = math.nan
    ece: Number = math.nan
    gap: Number = math.nan


@dataclass(frozen=True)
class Score:
    """The metrics of a network: shares in [0, 1] and nats. Those from ``brier`` on are optional.

    Args:
        name: name of the peer, or ``ensemble``.
        accuracy: top-1 accuracy.
        top5: share of images whose label is among the five most likely classes; None with fewer than six classes.
        nll: mean negative log-likelihood in nats.
        kind: ``peer``, ``shadow``, ``frozen``, ``ensemble`` or ``deployed``.
        brier: Brier score, summed over the classes, in [0, 2].
        ece: expected calibration error with 15 bins, a share.
        gap: mean confidence - accuracy; above 0 is overconfident.
        temperature: temperature fitted on validation images; None if there are none.
        calibrated: metrics at that temperature.
        per_class: recall of each class; None for a class without images.
        confusion: confusion matrix of counts, with a row for each true class.
        reliability: bins of the ECE.
    """

    name: str
    accuracy: Number = math.nan
    top5: Maybe = None
    nll: Number = math.nan
    kind: str = "peer"
    brier: Maybe = None
    ece: Maybe = None
    gap: Maybe = None
    temperature: Maybe = None
    calibrated: Calibrated | None = None
    per_class: tuple[Maybe, ...] = ()
    confusion: tuple[tuple[Count, ...], ...] = ()
    reliability: Reliability = field(default_factory=Reliability)

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean recall of the classes that have images; None without per-class metrics."""
        known = [recall for recall in self.per_class if recall is not None]
        return fmean(known) if known else None

    @property
    def macro_f1(self) -> float | None:
        """The mean F1 score of all classes that occur as labels or predictions; None without a confusion matrix."""
        columns = [sum(column) for column in zip(*self.confusion, strict=False)]
        pairs = [(row[k], sum(row) + columns[k]) for k, row in enumerate(self.confusion) if k < len(columns)]
        known = [2 * right / both for right, both in pairs if both]
        return fmean(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the name and the three basic metrics, or all metrics, with None for NaN and infinity."""
        if not self.confusion:
            return {"name": self.name, "accuracy": self.accuracy, "top5": self.top5, "nll": self.nll}
        averages = {"balanced_accuracy": self.balanced_accuracy, "macro_f1": self.macro_f1}
        return {"name": self.name, "kind": self.kind, **plain(asdict(self)), **averages}


def score(
    name: str, kind: str, logits: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
) -> Score:
    """Compute all metrics from ``(N, C)`` logits and ``(N,)`` labels.

    Args:
        name, kind: see :class:`Score`.
        logits: before or after a log-softmax; for an ensemble the logs of the mean probabilities.
        labels: the true classes.
        validation: logits ``(M, C)`` and labels ``(M,)`` to fit the temperature on.
    """
    logs = cooled(logits, 1.0)
    bins = reliability(logs, labels)
    temperature, calibrated = None, None
    if validation is not None and has_temperature(*validation):
        temperature = fit_temperature(*validation)
        scaled = cooled(logits, temperature)
        after = reliability(scaled, labels)
        calibrated = Calibrated(nll(scaled, labels), brier(scaled, labels), after.ece, after.gap)
    return Score(
        name=name,
        kind=kind,
        accuracy=accuracy(logs, labels),
        top5=top_k(logs, labels),
        nll=nll(logs, labels),
        brier=brier(logs, labels),
        ece=bins.ece,
        gap=bins.gap,
        temperature=temperature,
        calibrated=calibrated,
        per_class=tuple(per_class(logs, labels)),
        confusion=tuple(tuple(row) for row in confusion(logs, labels).tolist()),
        reliability=bins,
    )
