"""The recorded metrics of an exported network, read from the reports of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metamixer.core.files import read_mapping
from metamixer.export.select_network import Chosen

_PLAIN = ("accuracy", "top5", "nll")
_MORE = ("brier", "ece", "gap", "temperature", "calibrated")


def recorded_metrics(folder: Path, chosen: Chosen) -> dict[str, Any]:
    """``split``, ``images``, ``accuracy``, ``top5``, ``nll`` from ``report.json``, and more from ``evaluation.json``.

    Only metrics of exactly this network are included, not those of another epoch or of an ensemble of other peers.
    Missing metrics are left out; the result is empty if there are none.
    """
    report = read_mapping(folder / "report.json")
    found: dict[str, Any] = {}
    if score := _of_report(report, chosen):
        last = report.get("last_epoch", {})
        found = {"split": report.get("split"), "images": last.get("images")}
        found |= {key: score[key] for key in _PLAIN if score.get(key) is not None}
    validation = chosen.classifier.facts.get("validation_accuracy")
    if validation is not None:
        found["validation_accuracy"] = validation
    evaluation = read_mapping(folder / "evaluation.json")
    if more := _of_evaluation(evaluation, chosen):
        if not found.get("accuracy"):
            found |= {"split": evaluation.get("split"), "images": evaluation.get("images")}
            found |= {key: more[key] for key in _PLAIN if more.get(key) is not None}
        if evaluation.get("split") == found.get("split"):
            found |= {key: more[key] for key in _MORE if more.get(key) is not None}
    return found


def _of_report(report: dict[str, Any], chosen: Chosen) -> dict[str, Any]:
    if chosen.peer == "best":
        return report.get("deployed") or {}
    last = report.get("last_epoch") or {}
    if not chosen.final:
        return {}
    if chosen.peer == "ensemble":
        return (last.get("ensemble") or {}) if chosen.whole else {}
    peers = last.get("peers") or []
    return peers[chosen.members[0]] if chosen.members[0] < len(peers) else {}


def _of_evaluation(evaluation: dict[str, Any], chosen: Chosen) -> dict[str, Any]:
    if chosen.peer == "best":
        kind, name = "deployed", None
    elif evaluation.get("checkpoint") != "last" or not chosen.final:
        return {}
    elif chosen.peer == "ensemble":
        if not chosen.whole:
            return {}
        kind, name = "ensemble", None
    else:
        kind, name = None, chosen.recipe.names[chosen.members[0]]
    for network in evaluation.get("networks") or []:
        if kind in (None, network.get("kind")) and name in (None, network.get("name")):
            return network  # type: ignore[no-any-return]
    return {}
