"""Reports of runs and studies as an HTML page and as plots."""

from metamixer.report.page import report
from metamixer.report.static_plots import plots

__all__ = ["plots", "report"]
