import threading

import pytest

from metamixer.core.progress import watched, watched_by


def test_each_item_is_reported_after_it_was_used():
    happened = []
    with watched_by(lambda *said: happened.append(said)):
        for item in watched(iter("ab"), "reading", 2):
            happened.append(item)
    assert happened == [("reading", 0, 2), "a", ("reading", 1, 2), "b", ("reading", 2, 2)]


def test_without_a_watcher_the_items_come_as_they_are():
    assert list(watched(range(3), "reading", 3)) == [0, 1, 2]


def test_the_inner_watcher_sees_what_is_inside_and_an_error_gives_the_outer_one_back():
    outer, inner = [], []
    with watched_by(lambda *said: outer.append(said)):
        with pytest.raises(KeyError), watched_by(lambda *said: inner.append(said)):
            raise KeyError(list(watched("a", "inside", 1)))
        list(watched("a", "outside", 1))
    list(watched("a", "after", 1))
    assert inner == [("inside", 0, 1), ("inside", 1, 1)]
    assert outer == [("outside", 0, 1), ("outside", 1, 1)]


def test_other_threads_are_not_watched():
    seen = []
    with watched_by(lambda *said: seen.append(said)):
        thread = threading.Thread(target=lambda: list(watched("ab", "elsewhere", 2)))
        thread.start()
        thread.join()
    assert seen == []
