import multiprocessing
import threading
import time

import pytest

from metamixer.data.files.memory_budget import Room


def held_at_once(room, sizes, seconds=0.002):
    """The most that threads hold together, each of which holds its size for a while."""
    lock, now, most = threading.Lock(), [0], [0]

    def hold(size):
        with room.taken(size):
            with lock:
                now[0] += size
                most[0] = max(most[0], now[0])
            time.sleep(seconds)
            with lock:
                now[0] -= size

    threads = [threading.Thread(target=hold, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return most[0]


def test_threads_stay_within_the_limit():
    room = Room(10)
    assert held_at_once(room, [3, 4, 5, 2, 6, 1, 10, 7, 3, 4] * 3) <= 10
    assert room.held == 0


def test_what_fits_is_held_at_once():
    """Four threads wait for each other while they hold: with less room they would wait for ever."""
    room, all_in = Room(8), threading.Barrier(4, timeout=20)

    def hold():
        with room.taken(2):
            all_in.wait()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not all_in.broken


def test_what_is_larger_than_the_limit_gets_in_alone():
    assert held_at_once(Room(10), [25, 3, 25, 3]) <= 25


def test_an_error_gives_the_room_back():
    room = Room(10)
    with pytest.raises(MemoryError), room.taken(8):
        raise MemoryError
    assert room.held == 0


def _take(room, sent):
    with room.taken(10):
        sent.send(room.held)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_copy_of_the_process_starts_empty():
    """Forked while a thread holds room and another waits, neither of which is in the copy."""
    context, room = multiprocessing.get_context("fork"), Room(10)
    received, sent = context.Pipe(duplex=False)
    with room.taken(9):
        waiting = threading.Thread(target=held_at_once, args=(room, [5]))
        waiting.start()
        copied = context.Process(target=_take, args=(room, sent))
        copied.start()
        assert received.poll(20)
        assert received.recv() == 10
        copied.join(20)
    waiting.join(20)
    assert room.held == 0
