"""The values of a run for the template: plain values without markup."""

from __future__ import annotations

import shlex
from statistics import fmean
from typing import Any

from metamixer.core.text import counted
from metamixer.metrics.chance import may_be_chance
from metamixer.report import network_tables, per_class, robustness_tables
from metamixer.report.curves import curves, overlaid, robustness
from metamixer.report.read_runs import RunFiles
from metamixer.report.svg_charts import drawn, reliability
from metamixer.report.tables import Cell, gain, known, points, share


def of_run(run: RunFiles) -> dict[str, Any]:
    """The sections of a run; sections without content are empty."""
    found, base = run.evaluation, run.baseline.evaluation if run.baseline else None
    confusions = [per_class.confusion(found, one) for one in _main_first(run)] if found else []
    return {
        "name": run.name,
        "folder": str(run.folder),
        "headline": headline(run),
        "facts": facts(run),
        "tiles": tiles(run),
        "notes": list(run.notes),
        "data_notes": list(run.ended.notes) if run.ended else [],
        "networks": network_tables.networks(run),
        "curves": [drawn(chart) for chart in curves(run)],
        "thinned": len(run.epochs) > 500,
        "missing": missing(run),
        "calibration": network_tables.calibration(found) if found and found.networks else None,
        "alike": network_tables.alike(found) if found else [],
        "alike_text": network_tables.agreement(found, run.ended.last_epoch if run.ended else None),
        "reliability": [one for one in map(reliability, _main_first(run)) if one is not None],
        "averages": per_class.averages(found) if found else None,
        "classes": per_class.classes(found, base) if found else None,
        "confusions": [one for one in confusions if one is not None],
        "robustness": robustness_tables.robustness(found, base) if found else [],
        "robustness_curves": [drawn(chart) for chart in robustness(run)],
        "localization": robustness_tables.localization(found, base) if found else [],
        "main": found.main.name if found else "",
        "preview": None,
        "gallery": [],
        "gallery_boxes": {},
        "yaml": run.yaml.splitlines(),
        "versions": versions(run),
    }


def of_runs(runs: list[RunFiles]) -> dict[str, Any]:
    """The comparison of several runs."""
    return {"table": network_tables.comparison(runs), "curves": [drawn(chart) for chart in overlaid(runs)]}


def _main_first(run: RunFiles) -> list[Any]:
    if run.evaluation is None:
        return []
    main = run.evaluation.main
    return [main, *(one for one in run.evaluation.networks if one is not main)]


def headline(run: RunFiles) -> str:
    """A description of the run in one line."""
    peers = [name.partition(" ")[2] or name for name in run.peers]
    data = run.setting("data", "name") or "data"
    return f"{' and '.join(peers) or 'networks'} by {network_tables.method(run)} on {data}"


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """The names and values of the most important settings."""
    optim = run.setting("optim") if isinstance(run.setting("optim"), dict) else {}
    rows = [
        ("Peers", ", ".join(run.peers)),
        ("Loss", _part(run, "loss")),
        ("Mixer", _part(run, "mixer")),
        ("Data", run.setting("data", "name")),
        ("Epochs", run.setting("train", "epochs")),
        ("Batch size", run.setting("train", "batch_size")),
        ("Optimizer", ", ".join(str(value) for value in (optim.get("name"), _rate(optim)) if value)),
        ("Seed", run.setting("train", "seed")),
        ("Folder", run.folder),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _rate(optim: dict[str, Any]) -> str:
    return f"learning rate {optim['lr']}" if "lr" in optim else ""


def _part(run: RunFiles, key: str) -> str:
    part = run.setting(key)
    if not isinstance(part, dict):
        return str(part or "")
    settings = ", ".join(f"{name} {value}" for name, value in part.items() if name != "name" and value is not None)
    return f"{part.get('name', '–')}{f' ({settings})' if settings else ''}"


def tiles(run: RunFiles) -> list[dict[str, Any]]:
    """The most important metrics."""
    ended = run.ended
    if ended is None:
        return []
    last, images = ended.last_epoch, ended.last_epoch.images
    base = run.baseline.ended if run.baseline else None
    peers = [score.accuracy for score in last.peers if known(score.accuracy)]
    made: list[dict[str, Any]] = []

    def add(label: str, cell: Cell, text: str) -> None:
        if cell.value is not None:
            made.append({"label": label, "cell": cell, "text": text})

    if ended.deployed is not None:
        add("Deployed network", share(ended.deployed.accuracy, images), ended.deployed.name)
    add("Ensemble", share(last.ensemble.accuracy, images), f"of {counted(len(last.peers), 'peer')}")
    add("Mean of the peers", share(fmean(peers) if peers else None, images), "after the last epoch")
    if base is not None and base.deployed is not None and ended.deployed is not None:
        for what, mine, other in (
            ("deployed network", ended.deployed.accuracy, base.deployed.accuracy),
            ("ensemble", last.ensemble.accuracy, base.last_epoch.ensemble.accuracy),
        ):
            if known(mine) and known(other) and images:
                chance = "; may be chance" if may_be_chance(mine, other, images) else ""
                add("Over the baseline", gain(mine, other, images), f"percentage points, {what}{chance}")
    if run.evaluation is not None:
        main = run.evaluation.main
        add("Calibration error", points(main.ece), f"ECE in percentage points, {main.name}")
    return made


def missing(run: RunFiles) -> list[tuple[str, str]]:
    """Sections that the page could also show: a sentence, and the command that computes them."""
    lines: list[tuple[str, str]] = []
    if run.ended is None:
        return lines  # the run has to end first
    if run.evaluation is None:
        what = "Calibration, confusions and the accuracy of each class are not computed yet."
        lines.append((what, f"metamixer evaluate {shlex.quote(str(run.folder))}"))
    if run.baseline is not None and run.baseline.evaluation is None:
        what = "The gains of each class over the baseline need its evaluation as well."
        lines.append((what, f"metamixer evaluate {shlex.quote(str(run.baseline.folder))}"))
    if run.evaluation is not None and run.evaluation.robustness is None:
        what = "Robustness to corruptions and attacks has not been measured."
        lines.append((what, f"metamixer evaluate {shlex.quote(str(run.folder))} --robustness all"))
    return lines


def versions(run: RunFiles) -> list[tuple[str, str]]:
    """The machine and the versions of packages."""
    found = run.environment
    if found is None:
        return []
    rows = [("Python", found.python), ("System", found.platform), ("Processor", found.processor), ("GPU", found.gpu)]
    return [(name, str(value)) for name, value in (*rows, *found.versions.items()) if value]
