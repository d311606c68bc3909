"""Runs and studies as one page, and as pictures."""

from metamixer.reporting.page import report
from metamixer.reporting.static import plots

__all__ = ["plots", "report"]
