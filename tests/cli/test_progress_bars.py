"""Bars are for terminals, lines for logs; what has no stages yet moves too."""

import io

import pytest
from rich.console import Console

from metamixer.cli import progress_bars, waiting
from metamixer.core.progress import watched


@pytest.mark.parametrize("terminal", [True, False])
def test_bars(terminal, monkeypatch):
    target = Console(file=io.StringIO(), force_terminal=terminal, width=120, _environ={})
    for module in (progress_bars, waiting):
        monkeypatch.setattr(module, "console", lambda *, stderr: target)
    monkeypatch.setattr(waiting, "_PATIENCE", 0.0)
    with progress_bars.bars("reading images") as progress:
        progress("corruptions", 20, 1500)
        progress("corruptions", 40, 1500)
        list(watched("ab", "inside"))
    shown = target.file.getvalue()
    assert ("reading images" in shown) == terminal
    assert ("40/1500" in shown) == terminal
    assert ("corruptions: 20 of 1,500" in shown) != terminal
    assert ("2/2" in shown) == terminal
    assert ("inside: 0 of 2" in shown) != terminal
