"""Bars are for terminals; what has no stages yet moves too."""

import io

import pytest
from rich.console import Console

from metamixer.cli import progress_bars


@pytest.mark.parametrize("terminal", [True, False])
def test_bars(terminal, monkeypatch):
    target = Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={})
    monkeypatch.setattr(progress_bars, "console", lambda *, stderr: target)
    with progress_bars.bars("reading images") as progress:
        assert (progress is not None) == terminal
        if progress is not None:
            progress("corruptions", 20, 1500)
            progress("corruptions", 40, 1500)
    shown = target.file.getvalue()
    assert ("reading images" in shown) == terminal
    assert ("40/1500" in shown) == terminal
