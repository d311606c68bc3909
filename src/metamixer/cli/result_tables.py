"""The result of training in the terminal: a table, and sentences that explain it."""

from __future__ import annotations

from rich.console import Group

from metamixer.cli.report_table import drawn
from metamixer.core.text import counted, percent
from metamixer.evaluation.report import Report
from metamixer.metrics.chance import chance_note
from metamixer.report.network_tables import scores
from metamixer.runs.run import Result


def report_table(title: str, report: Report) -> Group:
    """A table of every peer and the ensemble: accuracy, top-5 if available, negative log-likelihood."""
    rows = [(score.name, score) for score in report.rows]
    return drawn(scores(title, rows, report.images, strong=[len(report.peers)]))


def result_table(result: Result, epochs: int, baseline: Result | None = None) -> Group:
    """A table of the metrics after the last epoch and of the deployed network, with the gain over a baseline."""
    last = result.last
    rows = [(score.name, score) for score in last.rows]
    rows.append((f"deployed: {result.deployed.name}, epoch {result.best.epoch}", result.deployed))
    others = None if baseline is None else [*baseline.last.rows, baseline.deployed]
    title = f"{counted(last.images, f'{result.split} image')}, after the last epoch ({epochs})"
    return drawn(scores(title, rows, last.images, others, strong=[len(last.peers)]))


def result_text(result: Result, epochs: int, baseline: Result | None = None) -> list[str]:
    """Sentences that explain the metrics of the table."""
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
