"""The result of a training in the terminal: a table, and sentences that explain its metrics."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from metamixer.cli.console import table, titled
from metamixer.core.text import clean, percent
from metamixer.evaluation.evaluate import Report, Score
from metamixer.metrics.chance import chance_note, may_be_chance
from metamixer.runs.run import Result


def report_table(report: Report, baseline: Report | None = None) -> Table:
    """Every peer and the ensemble: accuracy, top-5 where it exists, negative log-likelihood, gain over a baseline."""
    top5 = report.ensemble.top5 is not None
    columns = ["network", "accuracy", *(["top-5"] if top5 else []), "NLL"]
    made = table([*columns, *(["baseline", "gain"] if baseline else [])])
    for index, score in enumerate(report.rows):
        other = None if baseline is None else baseline.rows[index]
        ensemble = index == len(report.peers)
        made.add_row(*_cells(score, top5, report.images, other), style="bold" if ensemble else "")
    return made


def result_table(result: Result, epochs: int, baseline: Result | None = None) -> Group:
    """The metrics after the last epoch, and those of the deployed network."""
    last = result.last
    made = report_table(last, baseline.last if baseline else None)
    made.add_section()
    deployed = _cells(
        result.deployed, last.ensemble.top5 is not None, last.images, baseline.deployed if baseline else None
    )
    made.add_row(Text(f"deployed: {clean(result.deployed.name)}, epoch {result.best.epoch}"), *deployed[1:])
    return titled(f"{last.images:,} {result.split} images, after the last epoch ({epochs})", made)


def _cells(score: Score, top5: bool, images: int, baseline: Score | None) -> list[Text]:
    cells = [Text(clean(score.name)), Text(percent(score.accuracy, images))]
    if top5:
        cells.append(Text("" if score.top5 is None else percent(score.top5, images)))
    cells.append(Text(f"{score.nll:.3f}"))
    if baseline is not None:
        gain = 100 * (score.accuracy - baseline.accuracy)
        digits = 2 if images >= 10_000 else 1
        cells.append(Text(percent(baseline.accuracy, images)))
        style = "" if may_be_chance(score.accuracy, baseline.accuracy, images) else "green" if gain > 0 else "red"
        cells.append(Text(f"{gain:+.{digits}f}", style=style))
    return cells


def result_text(result: Result, epochs: int, baseline: Result | None = None) -> list[str]:
    """What the table's metrics are from, in sentences."""
    last, best = result.last, result.best
    if result.split == "test":
        lines = [
            f"The first rows are from the test images after epoch {epochs}, the last; the test set was not used for "
            "model selection."
        ]
    else:
        lines = [
            f"There are no test images: the metrics are from the validation images after epoch {epochs}, the last. "
            "The deployed network was chosen by the same images, so its accuracy is optimistically biased."
        ]
    if best.accuracy == best.accuracy:
        lines.append(
            f"The deployed network is peer {result.deployed.name} as it was after epoch {best.epoch}, chosen by its "
            f"validation accuracy of {percent(best.accuracy)}."
        )
    else:
        lines.append(f"Without validation images the deployed network is peer {result.deployed.name} as it ended.")
    if baseline is not None:
        note = chance_note(last.ensemble.accuracy, baseline.last.ensemble.accuracy, last.images)
        lines.append(
            "The baseline is the same peers, data, epochs and seed with cross-entropy alone and no mixing. The gain is "
            f"in percentage points; {note} (Fisher's exact test of the ensembles)."
        )
    return lines
