"""Runs and studies as one page, and as pictures."""

from metamixer.report.page import report
from metamixer.report.static_plots import plots

__all__ = ["plots", "report"]
