"""The columns that the table of a study can show, and how to read them from the files of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Found = Mapping[str, Any]
"""The content of ``report.json`` and ``evaluation.json`` of a run, and the last ``epoch`` in ``metrics.jsonl``."""


@dataclass(frozen=True)
class Metric:
    """A column, by default a share in percent.

    Args:
        title: heading of the column.
        read: reads the metric from :data:`Found` of a run.
        scale: factor of displayed values.
        digits: number of decimals.
        higher: whether higher is better.
    """

    title: str
    read: Callable[[Found], float]
    scale: float = 100
    digits: int = 1
    higher: bool = True


def _low(title: str, read: Callable[[Found], float]) -> Metric:
    """A score for which lower is better."""
    return Metric(title, read, scale=1, digits=3, higher=False)


def _last(found: Found) -> Any:
    return found["report"]["last_epoch"]


def _learners(found: Found, rows: Sequence[Any]) -> list[Any]:
    return [rows[index] for index in found["report"]["learners"]]


def _peers(key: str, over: Callable[[Iterable[float]], float] = fmean) -> Callable[[Found], float]:
    return lambda found: over(peer[key] for peer in _learners(found, _last(found)["peers"]))


def _evaluated(key: str, kind: str = "peer") -> Callable[[Found], float]:
    return lambda found: fmean(each[key] for each in found["evaluation"]["networks"] if each["kind"] == kind)


def _named_peers(found: Found) -> list[str]:
    return [each["name"] for each in found["evaluation"]["networks"] if each["kind"] == "peer"]


def _located(key: str) -> Callable[[Found], float]:
    return lambda found: fmean(
        each[key] for each in found["evaluation"]["localization"]["networks"] if each["name"] in _named_peers(found)
    )


def _robust(of: Callable[[Found], Found]) -> Callable[[Found], float]:
    return lambda found: fmean(of(found["evaluation"]["robustness"])[name] for name in _named_peers(found))


def _attacked(name: str) -> Callable[[Found], float]:
    return _robust(lambda found: found["attacks"][name]["accuracy"])


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy, mean of peers, last epoch (%)", _peers("accuracy")),
    "best_peer": Metric("accuracy, better peer, last epoch (%)", _peers("accuracy", max)),
    "deployed": Metric("accuracy, chosen by validation (%)", lambda found: found["report"]["deployed"]["accuracy"]),
    "ensemble": Metric("accuracy, ensemble, last epoch (%)", lambda found: _last(found)["ensemble"]["accuracy"]),
    "nll": _low("NLL, mean of peers (nats)", _peers("nll")),
    "ensemble_nll": _low("NLL, ensemble (nats)", lambda found: _last(found)["ensemble"]["nll"]),
    "train_accuracy": Metric(
        "training accuracy, as mixed, last epoch (%)",
        lambda found: fmean(_learners(found, found["epoch"]["train_accuracy"])),
    ),
    "agreement": Metric("agreement of peers (%)", lambda found: _last(found)["agreement"]),
    "brier": _low("Brier", _evaluated("brier")),
    "ece": Metric("ECE (%)", _evaluated("ece"), higher=False),
    "ensemble_ece": Metric("ECE, ensemble (%)", _evaluated("ece", "ensemble"), higher=False),
    "balanced_accuracy": Metric("balanced accuracy (%)", _evaluated("balanced_accuracy")),
    "macro_f1": Metric("macro F1 (%)", _evaluated("macro_f1")),
    "max_box_acc_v2": Metric("MaxBoxAccV2 (%)", _located("max_box_acc_v2")),
    "pointing": Metric("pointing game (%)", _located("pointing")),
    "energy": Metric("energy in box (%)", _located("energy")),
    "corruptions": Metric("accuracy, corrupted (%)", _robust(lambda found: found["corruptions"]["mean"])),
    "fgsm": Metric("accuracy under FGSM (%)", _attacked("fgsm")),
    "pgd-10": Metric("accuracy under PGD-10 (%)", _attacked("pgd-10")),
    "pgd-20": Metric("accuracy under PGD-20 (%)", _attacked("pgd-20")),
}
"""Columns by their names in study files. Means are over the peers that learn; the test split is not used to select."""


def read_metrics(found: Found) -> dict[str, float]:
    """All available metrics of a finished run."""
    metrics = {}
    for name, metric in METRICS.items():
        try:
            metrics[name] = float(metric.read(found))
        except (KeyError, TypeError, IndexError, ValueError):
            continue  # it was not measured
    return metrics
