"""Curves of one run, and of several runs in one chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from metamixer.metrics.network_scores import Score
from metamixer.report.read_runs import RunFiles
from metamixer.report.schema import Epoch
from metamixer.report.svg_charts import INK, Chart, Line
from metamixer.report.tables import known, measured

_TERMS = {"task": "Task loss (cross-entropy)", "distill": "Distillation loss"}


def curves(run: RunFiles) -> list[Chart]:
    """A chart for each quantity recorded per epoch: accuracies, losses by term, learning rate."""
    if not run.epochs:
        return []
    xs = tuple(float(one.epoch) for one in run.epochs)
    made = [
        Chart("Validation accuracy", "epoch", xs, _scores(run, lambda score: score.accuracy), shares=True),
        Chart("Training accuracy, on mixed images", "epoch", xs, _peers(run, lambda e: e.train_accuracy), shares=True),
        Chart("Validation negative log-likelihood", "epoch", xs, _scores(run, lambda score: score.nll)),
    ]
    for term in dict.fromkeys(name for one in run.epochs for name in one.terms):
        title = _TERMS.get(term, f"Term “{term}” of the loss")
        made.append(Chart(title, "epoch", xs, _peers(run, lambda e, term=term: e.terms.get(term, ()))))  # type: ignore[misc]
    mixing = {"strength of mixing": "strength", "overfitting": "overfitting"}
    lines = [
        Line(name, tuple(getattr(one, key) for one in run.epochs), i) for i, (name, key) in enumerate(mixing.items())
    ]
    made.append(Chart("Strength of mixing, and the overfitting that it follows", "epoch", xs, tuple(lines)))
    rates = tuple(one.lr for one in run.epochs)
    made.append(Chart("Learning rate", "epoch", xs, (Line("learning rate", rates, INK),)))
    return [chart for chart in made if any(line.last is not None for line in chart.lines)]


def _scores(run: RunFiles, what: Callable[[Score], float]) -> tuple[Line, ...]:
    """A line for each peer and for the ensemble, over the validated epochs."""
    rows = [one.val.rows if one.val is not None else () for one in run.epochs]
    names = max(([score.name for score in row] for row in rows), key=len, default=[])
    lines = []
    for index, name in enumerate(names):
        values = tuple(measured(what(row[index])) if index < len(row) else None for row in rows)
        lines.append(Line(name, values, INK if name == "ensemble" else index))
    return tuple(lines)


def _peers(run: RunFiles, what: Callable[[Epoch], Sequence[float | None]]) -> tuple[Line, ...]:
    rows = [what(one) for one in run.epochs]
    count, names = max(map(len, rows), default=0), run.peers
    return tuple(
        Line(
            names[index] if index < len(names) else str(index),
            tuple(row[index] if index < len(row) else None for row in rows),
            index,
        )
        for index in range(count)
    )


def overlaid(runs: Sequence[RunFiles]) -> list[Chart]:
    """Charts with all runs: validation accuracy of the ensemble, and mean of the peers."""
    xs = tuple(sorted({float(one.epoch) for run in runs for one in run.epochs}))
    if not xs:
        return []

    def chart(title: str, what: Callable[[Epoch], float | None]) -> Chart:
        lines = []
        for index, run in enumerate(runs):
            found = {float(one.epoch): what(one) for one in run.epochs}
            lines.append(Line(run.name, tuple(found.get(x) for x in xs), index))
        return Chart(title, "epoch", xs, tuple(lines), shares=True)

    made = [
        chart("Validation accuracy of the ensemble", _ensemble),
        chart("Validation accuracy, mean of the peers", _mean),
    ]
    return [each for each in made if any(line.last is not None for line in each.lines)]


def _ensemble(one: Epoch) -> float | None:
    return None if one.val is None else measured(one.val.ensemble.accuracy)


def _mean(one: Epoch) -> float | None:
    found = [] if one.val is None else [score.accuracy for score in one.val.peers if known(score.accuracy)]
    return fmean(found) if found else None


def robustness(run: RunFiles) -> list[Chart]:
    """Accuracy by severity of corruptions, the mean over all kinds; severity 0 is the unchanged images."""
    if run.evaluation is None or run.evaluation.robustness is None:
        return []
    corruptions = run.evaluation.robustness.corruptions
    if corruptions is None or not corruptions.kinds:
        return []
    names = list(dict.fromkeys(name for by_name in corruptions.kinds.values() for name in by_name))
    # Accuracy on the same subset of images; older files lack it.
    clean = {one.name: one.accuracy for one in run.evaluation.networks} | dict(run.evaluation.robustness.clean)
    kinds = list(corruptions.kinds.values())
    most = max((len(values) for by_name in kinds for values in by_name.values()), default=0)
    if not most:
        return []
    lines = []
    for index, name in enumerate(names):
        means = [_at([by_name.get(name, ()) for by_name in kinds], severity) for severity in range(most)]
        lines.append(Line(name, (clean.get(name), *means), INK if name == "ensemble" else index))
    xs = tuple(float(severity) for severity in range(most + 1))
    title = "Accuracy by severity of corruption, mean of all kinds"
    return [Chart(title, "severity", xs, tuple(lines), shares=True)]


def _at(rows: Sequence[Sequence[float | None]], severity: int) -> float | None:
    found = [row[severity] for row in rows if severity < len(row)]
    values = [value for value in found if known(value)]
    return fmean(values) if values and len(values) == len(rows) else None
