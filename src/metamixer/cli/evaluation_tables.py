"""An evaluation as tables in the terminal, the same as in the HTML report."""

from __future__ import annotations

from metamixer.cli.console import console, say
from metamixer.cli.report_table import drawn
from metamixer.core.text import clean
from metamixer.evaluation.report import Report
from metamixer.report import network_tables, per_class, robustness_tables

_MOST_CLASSES = 12


def show(found: Report) -> None:
    """Print a full evaluation: networks, classes, diversity, and optional measurements."""
    tables = [network_tables.calibration(found), per_class.classes(found, most=_MOST_CLASSES)]
    tables += [per_class.averages(found), *network_tables.alike(found)]
    tables += [*robustness_tables.robustness(found), *robustness_tables.localization(found)]
    for table in tables:
        if table is not None:
            console().print(drawn(table))
    say(network_tables.agreement(found))
    for note in found.localization.notes if found.localization else ():
        say(f"note: {clean(note)}")
