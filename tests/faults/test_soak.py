"""Thousands of steps, and the process is as large at the end as it was after the first ones."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path

import pytest
import torch

from metamixer.data import Augment, EvalLoader, TrainLoader, load
from tests import toys
from tests.faults.runs import photos

PAGE = os.sysconf("SC_PAGE_SIZE")


class Census:
    """After each epoch: resident megabytes, open files, threads and child processes of this process."""

    def __init__(self) -> None:
        self.counts: list[tuple[float, int, int, int]] = []

    def on_start(self, start) -> None: ...
    def on_step(self, record) -> None: ...
    def on_end(self) -> None: ...

    def on_epoch(self, record) -> None:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        files = len(os.listdir("/proc/self/fd"))
        self.counts.append((pages * PAGE / 2**20, files, threading.active_count(), len(children)))


def soak(folder, steps, images):
    """Peers, checkpoints, validation and two workers that read images from disk, for at least so many steps."""
    data = load(str(photos(folder / "photos", count=images)), cache_limit_bytes=0, image_size=8, channels=1)
    train = TrainLoader(
        data.train, Augment(pad=0), data.mean, data.std, batch_size=8, seed=0, companions=True, workers=2
    )
    census = Census()
    made = toys.trainer(folder / "run", -(-steps // len(train)), callbacks=[census])
    made.fit(train, EvalLoader(data.val, data.mean, data.std))
    return census.counts


def assert_level(counts, megabytes):
    """Without the first quarter, in which pools and caches fill."""
    settled = counts[len(counts) // 4 :]
    assert {count[1:] for count in settled[1:]} == {settled[-1][1:]}, settled
    third = len(settled) // 3
    sizes = torch.tensor([count[0] for count in settled])
    assert sizes[-third:].median() - sizes[:third].median() < megabytes, sizes.tolist()


@pytest.mark.slow
def test_three_hundred_steps(tmp_path):
    assert_level(soak(tmp_path, steps=300, images=50), megabytes=8)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_steps(tmp_path):
    counts = soak(tmp_path, steps=10_000, images=240)
    print(len(counts), *counts[:: len(counts) // 6], sep="\n")
    assert_level(counts, megabytes=5)
