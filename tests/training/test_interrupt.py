"""Signals: which ones stop a training, and what a closed terminal must not break."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from metamixer.training import checkpoint
from metamixer.training.interrupt import Watch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_the_first_signal_is_noted(number):
    before = signal.getsignal(number)
    with Watch() as watch:
        os.kill(os.getpid(), number)
        assert watch.received == number
    assert signal.getsignal(number) == before


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Watch() as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_after_sighup_the_terminal_may_be_gone():
    with Watch() as watch:
        with pytest.raises(OSError, match="gone"), watch.without_terminal():
            raise OSError("gone")
        os.kill(os.getpid(), signal.SIGHUP)
        with watch.without_terminal():
            raise OSError("gone")


@pytest.mark.timeout(240)
def test_a_closed_terminal_leaves_a_checkpoint(tmp_path):
    """A real one: the terminal's other side is closed while the progress bar writes to it."""
    ours, theirs = pty.openpty()
    command = [
        sys.executable, "-m", "metamixer", "train", "--peers", "resnet8,resnet8", "--device", "cpu", "--out",
        str(tmp_path / "run"), "data.train_limit=20", "train.epochs=500", "optim.lr=0.02", "peers.0.widths=[2,2,4,4]",
        "peers.1.widths=[2,2,4,4]",
    ]  # fmt: skip
    process = subprocess.Popen(
        ["setsid", "-c", *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    rows = tmp_path / "run" / "metrics.jsonl"
    while not (rows.exists() and rows.read_text()):
        assert process.poll() is None
        try:
            os.read(ours, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP
    found = checkpoint.read_latest(tmp_path / "run" / "checkpoints")
    assert found.state["step"] < 500 * 3
