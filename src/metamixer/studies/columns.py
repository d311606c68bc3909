"""The columns that a study's table can show, and how they are read from a run's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Found = Mapping[str, Any]
"""The content of a run's ``report.json`` and ``evaluation.json``, and its last ``epoch`` in ``metrics.jsonl``."""


@dataclass(frozen=True)
class Metric:
    """One column.

    Args:
        title: its heading.
        scale: of the numbers that are shown: 100 for shares in percent.
        digits: behind the point.
        read: reads it from a run's :data:`Found`.
        higher: whether more is better.
    """

    title: str
    scale: float
    digits: int
    read: Callable[[Found], float]
    higher: bool = True


def _last(key: str) -> Callable[[Found], float]:
    return lambda found: fmean(found["report"]["last_epoch"]["peers"][index][key] for index in _learners(found))


def _learners(found: Found) -> list[int]:
    return list(found["report"]["learners"])


def _evaluated(key: str, kind: str = "peer") -> Callable[[Found], float]:
    return lambda found: fmean(each[key] for each in found["evaluation"]["networks"] if each["kind"] == kind)


def _located(key: str) -> Callable[[Found], float]:
    def read(found: Found) -> float:
        peers = {each["name"] for each in found["evaluation"]["networks"] if each["kind"] == "peer"}
        return fmean(each[key] for each in found["evaluation"]["localization"]["networks"] if each["name"] in peers)

    return read


def _robust(of: Callable[[Found], Found]) -> Callable[[Found], float]:
    def read(found: Found) -> float:
        shares = of(found["evaluation"]["robustness"])
        return fmean(shares[each["name"]] for each in found["evaluation"]["networks"] if each["kind"] == "peer")

    return read


def _attacked(name: str) -> Callable[[Found], float]:
    return _robust(lambda found: found["attacks"][name]["accuracy"])


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy, mean of peers, last epoch (%)", 100, 1, _last("accuracy")),
    "best_peer": Metric(
        "accuracy, better peer, last epoch (%)",
        100,
        1,
        lambda found: max(found["report"]["last_epoch"]["peers"][index]["accuracy"] for index in _learners(found)),
    ),
    "deployed": Metric(
        "accuracy, chosen by validation (%)", 100, 1, lambda found: found["report"]["deployed"]["accuracy"]
    ),
    "ensemble": Metric(
        "accuracy, ensemble, last epoch (%)",
        100,
        1,
        lambda found: found["report"]["last_epoch"]["ensemble"]["accuracy"],
    ),
    "nll": Metric("NLL, mean of peers (nats)", 1, 3, _last("nll"), higher=False),
    "ensemble_nll": Metric(
        "NLL, ensemble (nats)", 1, 3, lambda found: found["report"]["last_epoch"]["ensemble"]["nll"], higher=False
    ),
    "train_accuracy": Metric(
        "training accuracy, as mixed, last epoch (%)",
        100,
        1,
        lambda found: fmean(found["epoch"]["train_accuracy"][index] for index in _learners(found)),
    ),
    "agreement": Metric("agreement of peers (%)", 100, 1, lambda found: found["report"]["last_epoch"]["agreement"]),
    "brier": Metric("Brier", 1, 3, _evaluated("brier"), higher=False),
    "ece": Metric("ECE (%)", 100, 1, _evaluated("ece"), higher=False),
    "ensemble_ece": Metric("ECE, ensemble (%)", 100, 1, _evaluated("ece", "ensemble"), higher=False),
    "balanced_accuracy": Metric("balanced accuracy (%)", 100, 1, _evaluated("balanced_accuracy")),
    "macro_f1": Metric("macro F1 (%)", 100, 1, _evaluated("macro_f1")),
    "max_box_acc_v2": Metric("MaxBoxAccV2 (%)", 100, 1, _located("max_box_acc_v2")),
    "pointing": Metric("pointing game (%)", 100, 1, _located("pointing")),
    "energy": Metric("energy in box (%)", 100, 1, _located("energy")),
    "corruptions": Metric("accuracy, corrupted (%)", 100, 1, _robust(lambda found: found["corruptions"]["mean"])),
    "fgsm": Metric("accuracy under FGSM (%)", 100, 1, _attacked("fgsm")),
    "pgd-10": Metric("accuracy under PGD-10 (%)", 100, 1, _attacked("pgd-10")),
    "pgd-20": Metric("accuracy under PGD-20 (%)", 100, 1, _attacked("pgd-20")),
}
"""By the names that study files use. Means are over the peers that learn; the test split is used for no choice."""


def read_metrics(found: Found) -> dict[str, float]:
    """All metrics that a finished run has."""
    found_metrics = {}
    for name, metric in METRICS.items():
        try:
            found_metrics[name] = float(metric.read(found))
        except (KeyError, TypeError, IndexError, ValueError):
            continue  # it was not measured
    return found_metrics
