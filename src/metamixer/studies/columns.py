"""The figures of a run that a study's table can show, read from its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One column.

    Args:
        title: its heading.
        scale: of the numbers that are shown: 100 for shares in percent.
        digits: behind the point.
        read: from ``report.json`` and ``evaluation.json``.
        higher: whether more is better.
    """

    title: str
    scale: float
    digits: int
    read: Callable[[Found, Found], float]
    higher: bool = True


def _last(key: str) -> Callable[[Found, Found], float]:
    def read(report: Found, _: Found) -> float:
        return fmean(report["last_epoch"]["peers"][index][key] for index in report["learners"])

    return read


def _evaluated(key: str) -> Callable[[Found, Found], float]:
    def read(_: Found, evaluation: Found) -> float:
        return fmean(each[key] for each in evaluation["networks"] if each["kind"] == "peer")

    return read


def _located(key: str) -> Callable[[Found, Found], float]:
    def read(_: Found, evaluation: Found) -> float:
        peers = {each["name"] for each in evaluation["networks"] if each["kind"] == "peer"}
        return fmean(each[key] for each in evaluation["localization"]["networks"] if each["name"] in peers)

    return read


def _robust(of: Callable[[Found], Found]) -> Callable[[Found, Found], float]:
    def read(_: Found, evaluation: Found) -> float:
        shares = of(evaluation["robustness"])
        return fmean(shares[each["name"]] for each in evaluation["networks"] if each["kind"] == "peer")

    return read


def _attacked(name: str) -> Callable[[Found, Found], float]:
    return _robust(lambda found: found["attacks"][name]["accuracy"])


FIGURES: dict[str, Figure] = {
    "accuracy": Figure("accuracy, mean of peers, last epoch (%)", 100, 1, _last("accuracy")),
    "best_peer": Figure(
        "accuracy, better peer, last epoch (%)",
        100,
        1,
        lambda report, _: max(report["last_epoch"]["peers"][index]["accuracy"] for index in report["learners"]),
    ),
    "deployed": Figure(
        "accuracy, chosen by validation (%)", 100, 1, lambda report, _: float(report["deployed"]["accuracy"])
    ),
    "ensemble": Figure(
        "accuracy, ensemble, last epoch (%)",
        100,
        1,
        lambda report, _: float(report["last_epoch"]["ensemble"]["accuracy"]),
    ),
    "nll": Figure("NLL, mean of peers (nats)", 1, 3, _last("nll"), higher=False),
    "agreement": Figure("agreement of peers (%)", 100, 1, lambda report, _: float(report["last_epoch"]["agreement"])),
    "brier": Figure("Brier", 1, 3, _evaluated("brier"), higher=False),
    "ece": Figure("ECE (%)", 100, 1, _evaluated("ece"), higher=False),
    "max_box_acc_v2": Figure("MaxBoxAccV2 (%)", 100, 1, _located("max_box_acc_v2")),
    "pointing": Figure("pointing game (%)", 100, 1, _located("pointing")),
    "energy": Figure("energy in box (%)", 100, 1, _located("energy")),
    "corruptions": Figure("accuracy, corrupted (%)", 100, 1, _robust(lambda found: found["corruptions"]["mean"])),
    "fgsm": Figure("accuracy under FGSM (%)", 100, 1, _attacked("fgsm")),
    "pgd-10": Figure("accuracy under PGD-10 (%)", 100, 1, _attacked("pgd-10")),
    "pgd-20": Figure("accuracy under PGD-20 (%)", 100, 1, _attacked("pgd-20")),
}
"""By the names that study files use. Means are over the peers that learn; the test split chooses nothing."""


def read_figures(folder: Path) -> dict[str, float]:
    """All figures that a finished run has."""
    report = _read(folder / "report.json")
    evaluation = _read(folder / "evaluation.json")
    found = {}
    for name, figure in FIGURES.items():
        try:
            found[name] = float(figure.read(report, evaluation))
        except (KeyError, TypeError, IndexError, ValueError):
            continue  # it was not measured
    return found


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
