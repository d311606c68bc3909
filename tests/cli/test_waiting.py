"""Loops of more than two seconds are seen, on a terminal and in a log."""

from io import StringIO

import pytest
from rich.console import Console

from metamixer.cli.waiting import Waiting
from metamixer.core.progress import watched, watched_by


def seen(seconds, items, first=True, terminal=False):
    """What a log holds after a loop of so many seconds an item."""
    clock, target = [0.0], Console(file=StringIO(), force_terminal=terminal, width=100, _environ={})
    waiting = Waiting(lambda: clock[0], target)
    for done in range(0 if first else 1, items + 1):
        waiting("decoding", done, items)
        clock[0] += seconds
    waiting.close()
    return target.file.getvalue()


def test_what_is_short_is_not_shown():
    assert seen(0.1, 20) == ""


def test_a_log_gets_a_line_after_two_seconds_and_then_every_thirty():
    assert seen(1.0, 100).splitlines() == [
        "decoding: 2 of 100, about 98 s left",
        "decoding: 32 of 100, about 68 s left",
        "decoding: 62 of 100, about 38 s left",
        "decoding: 92 of 100, about 8 s left",
    ]


def test_a_loop_that_does_not_say_that_it_begins_is_seen_as_well():
    assert len(seen(1.0, 100, first=False).splitlines()) == 4


def test_a_terminal_gets_one_line_that_goes_again():
    shown = seen(1.0, 100, terminal=True)
    assert "decoding: 99 of 100" in shown
    assert shown.rstrip().endswith("\x1b[2K")


@pytest.mark.parametrize("loops", [("a", "b"), ("a", "a")])
def test_loops_that_follow_each_other_each_have_their_time(loops):
    clock, target = [0.0], Console(file=StringIO(), width=100)
    with watched_by(Waiting(lambda: clock[0], target)):
        for what in loops:
            for _ in watched(range(4), what):
                clock[0] += 0.6
    assert target.file.getvalue() == ""
