"""Processes that decode images: they are killed, find damage, or no room. The training ends in seconds and says why."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metamixer.data import DataError, FolderImages, ImageError, WorkerError, load
from metamixer.data.files.streaming import Request, Stream, _Reader, worker_fault
from tests.faults.children import Server
from tests.faults.runs import photos, words

# Python 3.12 warns of fork in a process with threads; the workers decode with Pillow and touch none of them.
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def until(met, seconds=60):
    end = time.monotonic() + seconds
    while not met() and time.monotonic() < end:
        time.sleep(0.005)
    assert met()


SLOW = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGBUS, marks=SLOW), pytest.param(signal.SIGTERM, marks=SLOW)]
)
def test_a_killed_worker_ends_the_training_and_says_what_may_help(server, tmp_path, number):
    run = tmp_path / "run"
    command = [*words(photos(tmp_path / "data"), workers=2), "train.epochs=200", "--out", run]
    child = server.start(*command, streamed=True)
    until((run / "checkpoints" / "LATEST").exists)
    until(lambda: len(children(child.pid)) >= 2)
    killed = time.monotonic()
    os.kill(children(child.pid)[-1], number)
    code = child.wait()
    seconds = time.monotonic() - killed
    # Torch's own words about a bus error end with a zero, and may come right before.
    said = [line for line in child.text().splitlines() if line.lstrip("\0 ").startswith("error: ")]
    print(f"{signal.Signals(number).name}: exit {code} after {seconds:.1f} s")
    assert code == 75, child.text()
    assert seconds < 10  # torch waits 5 seconds for a worker that in turn waits for a lock of the dead one
    assert len(said) == 1
    assert "data.workers=0" in said[0]
    assert ("--shm-size" if number == signal.SIGBUS else "memory was full") in said[0]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_run_whose_worker_was_killed_resumes(server, tmp_path):
    run = tmp_path / "run"
    child = server.start(*words(photos(tmp_path / "data"), workers=2), "train.epochs=30", "--out", run, streamed=True)
    until((run / "checkpoints" / "LATEST").exists)
    until(lambda: len(children(child.pid)) >= 2)
    os.kill(children(child.pid)[-1], signal.SIGKILL)
    assert child.wait() == 75
    code, said = server.run("train", "--resume", run, streamed=True)
    assert code == 0, said
    assert (run / "report.json").is_file()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_is_damaged_beyond_its_header_ends_the_training_by_name(server, tmp_path, workers):
    data = photos(tmp_path / "data")
    for path in (data / "class 1").iterdir():
        path.write_bytes(path.read_bytes()[:-60])
    code, said = server.run(*words(data, workers=workers), "--out", tmp_path / "run", streamed=True)
    assert code == 65, said
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {data}/class 1/")
    assert ".png: damaged: " in errors[0]
    assert "Traceback" not in said
    code, said = server.run(
        *words(data, workers=workers), "data.on_error=skip", "--out", tmp_path / "again", streamed=True
    )
    assert code == 65
    assert "of 'class 1' no training image can be read; the first cause:" in said


@pytest.fixture
def streamed(tmp_path):
    data = load(photos(tmp_path / "data"), cache_limit_bytes=0, image_size=8)
    assert isinstance(data.train, FolderImages)
    return data


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_loader_works_again_after_its_worker_was_killed(tmp_path):
    """In a process of its own: torch reports a dead worker at any place of a program, which would crash pytest."""
    child = f"""
import os, signal, torch
from metamixer.data import Augment, TrainLoader, WorkerError, load
data = load({str(photos(tmp_path / "data"))!r}, cache_limit_bytes=0, image_size=8)
loader, plain = (TrainLoader(data.train, Augment(), data.mean, data.std, 4, 0, workers=n) for n in (2, 0))
batches = loader.epoch(0)
next(batches)
handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # so that the stream finds out, when it waits
os.kill(loader._stream._pipe[1]._iterator._workers[1].pid, signal.SIGKILL)
try:
    list(batches)
except WorkerError as error:
    told = str(error)
    signal.signal(signal.SIGCHLD, handler)
    os.kill(os.getpid(), signal.SIGCHLD)  # the dead one is forgotten
    for found, wanted in zip(loader.epoch(0), plain.epoch(0), strict=True):
        assert torch.equal(found.images, wanted.images)
print(told)
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "memory was full" in done.stdout


def test_a_damaged_file_is_the_same_error_from_a_worker(streamed, tmp_path):
    path = streamed.train.files[int(streamed.train.rows[0])]
    path.write_bytes(b"")
    request = pickle.loads(pickle.dumps(Request(torch.arange(3), torch.arange(2), seed=7)))
    assert (request.rows.tolist(), request.others.tolist(), request.seed) == ([0, 1, 2], [0, 1], 7)
    with pytest.raises(ImageError) as caught:
        list(Stream(streamed.train).read([request]))
    assert (str(caught.value), caught.value.code) == (f"{path}: empty, 0 bytes", "empty")
    assert str(_Reader(streamed.train)[request]) == str(caught.value)  # a worker hands it over
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.code) == (f"{path}: empty, 0 bytes", "empty")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), r"by a signal \(Killed\).*memory"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "before its work was done.*memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
                      "workers are out of shared memory."), "--shm-size"),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 1.\nOriginal Traceback: ...\nunable to "
                      "allocate shared memory(shm) for file </torch_7_0>: No space left on device (28)"), "--shm-size"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "ulimit -n"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "cannot be started: Resource"),
    ],
)  # fmt: skip
def test_what_torch_says_of_workers_is_said_with_what_helps(error, words):
    with pytest.raises(WorkerError, match=f"(?s){words}.*data.workers=0"):
        raise worker_fault(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shape mismatch"), RuntimeError("NCCL: unable to open shared memory"), OSError(28, "No space left")],
)
def test_other_errors_are_left_as_they_are(error):
    assert worker_fault(error) is None


def test_labels_on_disk_are_checked_as_those_in_memory(streamed):
    train = streamed.train
    for labels, message in (
        (train.labels + 1, "labels go from 1 to 3, but the 3 classes are numbered from 0 to 2"),
        (train.labels - 1, "labels go from -1 to 1"),
        (train.labels[1:], "one for every image"),
        (train.labels.float(), "int64"),
    ):
        with pytest.raises(DataError, match=message):
            FolderImages(train.files, train.rows, labels, train.classes, 3, (8, 8))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_full_shared_memory_is_reported_and_not_waited_for(tmp_path):
    """In a mount of its own with 64 kB of shared memory, as far as the system lets us."""
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no mount of our own here")
    run = (
        "from metamixer.data.files.load_files import Reading; from tests.faults.children import _as_if_large; "
        "_as_if_large(Reading); import sys; from metamixer.cli.app import main; main()"
    )
    command = [*words(photos(tmp_path / "data"), workers=2), "--image-size", 64, "--out", tmp_path / "run"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "-", sys.executable, "-c", run, *map(str, command)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert "no room for its batch in the shared memory" in done.stderr
    assert "Traceback" not in done.stderr
