"""Processes of one run that die, are stopped or do not suffice, through the command line and real launchers.

R8, R9, R10 and R13 of the list; and runs that are coupled by a folder only, of which one is killed and one is late.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from metamixer.training import checkpoint
from tests.faults.runs import outcome, photos, whole

EPOCHS, STEPS = 30, 5  # 40 images in batches of 8
TINY = ["--peers", "resnet8,resnet8", "peers.0.widths=[2,2,4,4]", "peers.1.widths=[2,4,4,4]", "--device", "cpu"]
TINY += ["--batch-size", "8", "data.val_share=0.2", "--quiet"]
QUICK = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("data") / "photos")


def train(data, out, *words, epochs=EPOCHS):
    more = ["--data", str(data), *TINY, "--epochs", str(epochs), *map(str, words)]
    return ["-m", "metamixer", "train", *more, "--resume", "auto", "--out", str(out)]


def torchrun(*command, restarts=0, processes=2):
    more = ["--standalone", f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return [sys.executable, "-m", "torch.distributed.run", *more, *command]


@contextmanager
def started(command, log):
    """A command in a session of its own, of which nothing is left at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=QUICK, start_new_session=True)
    try:
        yield process
    finally:
        for pid in (*family(process.pid), process.pid):
            kill(pid, signal.SIGKILL)
        process.wait()


def kill(pid, number):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def family(parent):
    """All descendants of a process."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {parent}
    while more := {pid for pid, of in parents.items() if of in found} - found:
        found |= more
    return sorted(found - {parent})


def ranks(parent):
    """The processes of a run by their rank, as their environments say it."""
    found = {}
    for pid in family(parent):
        try:
            words = dict(word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().split("\0") if word)
        except OSError:
            continue
        if "LOCAL_RANK" in words:
            found[int(words.get("RANK", words["LOCAL_RANK"]))] = pid
    return found


def until(reached, process, seconds=120):
    end = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, "it ended before that"
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.02)


def rows(out):
    path = out / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def assert_same(found, wanted):
    """All bits but one number: the training terms of the epoch in which several processes were stopped. Its sums were
    saved as one, and are added to the rest in another order.
    """
    rest = [{key: value for key, value in each.items() if key != "losses"} for each in (found, wanted)]
    assert rest[0] == rest[1]
    changed = 0
    for own, other in zip(found["losses"], wanted["losses"], strict=True):
        assert {**own, "terms": 0} == {**other, "terms": 0}
        assert own["terms"].keys() == other["terms"].keys()
        for name, values in own["terms"].items():
            assert values == pytest.approx(other["terms"][name], rel=1e-6)
        changed += own != other
    assert changed <= 1


def ends(command, log, seconds=150):
    """The exit code of a command that is left alone."""
    with started(command, log) as process:
        return process.wait(seconds)


@pytest.fixture(scope="module")
def reference(data, tmp_path_factory):
    """What two processes come to that nobody disturbs."""
    place = tmp_path_factory.mktemp("whole")
    assert ends(torchrun(*train(data, place / "run")), place / "log") == 0, (place / "log").read_text()
    return outcome(place / "run")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_a_killed_run_again(data, reference, tmp_path, rank):
    """R10: one process dies in the middle; torchrun starts both again, and the run ends in the same bits."""
    with started(torchrun(*train(data, tmp_path / "run"), restarts=1), tmp_path / "log") as process:
        until(lambda: rows(tmp_path / "run") >= 2, process)
        before = ranks(process.pid)
        assert kill(before[rank], signal.SIGKILL)
        assert rows(tmp_path / "run") < EPOCHS
        began = time.monotonic()
        until(
            lambda: set(after := ranks(process.pid)) == {0, 1} and not set(after.values()) & set(before.values()),
            process,
        )
        print(f"started again after {time.monotonic() - began:.1f} s")
        assert process.wait(150) == 0, (tmp_path / "log").read_text()
    assert outcome(tmp_path / "run") == reference


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("to", ["torchrun", "rank 1", "all"])
def test_a_signal_stops_all_ranks_at_one_step(data, reference, tmp_path, to):
    """R8: SIGTERM to torchrun, to one process or, as in clusters, to all, which torchrun then signals again."""
    command, out = torchrun(*train(data, tmp_path / "run")), tmp_path / "run"
    with started(command, tmp_path / "log") as process:
        until(lambda: rows(out) >= 2, process)
        workers = ranks(process.pid)
        told = {"torchrun": [process.pid], "rank 1": [workers[1]], "all": [process.pid, *workers.values()]}[to]
        for pid in told:
            kill(pid, signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(60) == 1, "torchrun's own code"
        print(f"stopped after {time.monotonic() - began:.1f} s")
    text = (tmp_path / "log").read_text()
    latest = checkpoint.read(checkpoint.pointed(out / "checkpoints", "LATEST"))
    assert f"stopped by SIGTERM after step {latest.state['step']}; resume with" in text
    assert "ProcessLost" not in text
    assert "lost another one" not in text
    assert 2 * STEPS <= latest.state["step"] < EPOCHS * STEPS
    assert latest.manifest["world_size"] == 2
    assert ends(command, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    assert_same(outcome(out), reference)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_the_own_launcher_is_killed(data, tmp_path, rank):
    """R9: train.devices=2. The run ends in seconds with a code that says so, leaves no process and can go on."""
    command, out = [sys.executable, *train(data, tmp_path / "run", "train.devices=2")], tmp_path / "run"
    with started(command, tmp_path / "log") as process:
        until(lambda: rows(out) >= 2, process)
        children = ranks(process.pid)
        assert set(children) == {1}
        began = time.monotonic()
        kill(process.pid if rank == 0 else children[1], signal.SIGKILL)
        code = process.wait(40)
        print(f"exit {code} after {time.monotonic() - began:.1f} s")
        if rank == 0:
            assert code == -signal.SIGKILL
        else:
            # Its own message, or the observer of Lightning Fabric comes first, every five seconds, and kills it.
            assert code in (75, -signal.SIGKILL), (tmp_path / "log").read_text()
        end = time.monotonic() + 40
        while any(alive(pid) for pid in children.values()):
            assert time.monotonic() < end, "the second process is left alone and stays"
            time.sleep(0.1)
        print(f"all ended after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 40
    text = (tmp_path / "log").read_text()
    assert "lost another one" in text or "terminated with code -9" in text, text
    assert whole(out)
    assert ends(command, tmp_path / "log") == 0


def alive(pid):
    """Whether a process is there and more than an entry of its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("count", "batch", "processes", "fine"),
    [(3, 8, 2, True), (9, 8, 2, True), (2, 8, 3, False), (9, 2, 3, False)],
)
def test_few_images_for_the_processes(tmp_path, count, batch, processes, fine):
    """R13: images in one batch that is smaller than asked for, or fewer than processes: done or said, never hung."""
    images = photos(tmp_path / "images", classes=2, count=count)
    root = tmp_path / "data"
    for split, numbers in (("train", (count - 1, 1)), ("test", (1, 1))):
        for label, number in enumerate(numbers):
            (root / split / str(label)).mkdir(parents=True)
            for file in sorted((images / f"class {label}").iterdir())[:number]:
                file.rename(root / split / str(label) / f"{split} {file.name}")
    words = ["data.val_share=0", f"train.batch_size={batch}"]
    command = torchrun(*train(root, tmp_path / "run", *words, epochs=2), processes=processes)
    began = time.monotonic()
    code = ends(command, tmp_path / "log", 100)
    text = (tmp_path / "log").read_text()
    assert (code == 0) == fine, text
    assert time.monotonic() - began < 100
    if not fine:
        assert f"images cannot be shared among {processes} processes" in text
        assert "failed (exitcode: 65)" in text, "so torchrun saw it"
        assert 'metamixer/cli.py", line' not in text, "the traceback is torchrun's alone"


# Coupled by a folder: three runs, each of one peer, that read what the others left there.


def loose(data, out, exchange, number, epochs):
    """The command of one of three: its own network, and frozen ones in the place of the others'."""
    widths = [[2, 2, 4, 4], [2, 4, 4, 4], [4, 4, 4, 4]]
    order = [number, *(other for other in range(3) if other != number)]
    peers = [f"{{name: resnet8, widths: {widths[n]}, frozen: {str(n != number).lower()}}}" for n in order]
    method = f"{{name: codistillation, exchange: {exchange}, peer: {number}, peers: 3, interval: 3, burn_in: 0.0}}"
    return [
        *(sys.executable, "-m", "metamixer", "train", "--data", str(data), "--device", "cpu", "--batch-size", "8"),
        *("data.val_share=0.2", "--quiet", f"peers=[{', '.join(peers)}]", f"loss={method}", "mixer=none"),
        *("--epochs", str(epochs), "--seed", str(number), "--resume", "auto", "--out", str(out)),
    ]


def distilled(out):
    """The distillation of the peer that learns, epoch by epoch."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["terms"]["distill"][0] for line in lines]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_runs_coupled_by_a_folder(data, tmp_path):
    """One is killed, one is late, a file is damaged: the others finish, the late one learns from what is there."""
    exchange = tmp_path / "exchange"
    outs = [tmp_path / f"run-{number}" for number in range(3)]

    def run(number, epochs):
        return started(loose(data, outs[number], exchange, number, epochs), tmp_path / f"log-{number}")

    with run(0, 150) as first, run(1, 400) as second:
        until(lambda: rows(outs[0]) >= 3 and rows(outs[1]) >= 3, first)
        until(lambda: any(distilled(outs[0])), first)
        second.kill()
        second.wait()
        left = (exchange / "peer-1.safetensors").read_bytes()
        # As a disk that lost its power, or a copying over a network, would leave it.
        (exchange / "peer-1.safetensors").write_bytes(left[: len(left) // 2])
        reached = rows(outs[0])
        until(lambda: rows(outs[0]) >= reached + 5, first)
        assert "passed over" in (tmp_path / "log-0").read_text()
        (exchange / "peer-1.safetensors").write_bytes(left)
        with run(2, 10) as late:
            assert late.wait(120) == 0, (tmp_path / "log-2").read_text()
        assert first.wait(120) == 0, (tmp_path / "log-0").read_text()
    assert all(value > 0 for value in distilled(outs[2])), "from its first epoch on it learns from what it found"
    assert all(value > 0 for value in distilled(outs[0])[-20:])
    assert rows(outs[0]) == 150
    kept = safetensors.torch.load(left)
    for number, out in ((0, outs[0]), (2, outs[2])):
        assert (out / "model.safetensors").is_file()
        latest = checkpoint.pointed(out / "checkpoints", "LATEST")
        found = safetensors.torch.load_file(latest / "weights.safetensors")
        place = 1 + sorted({0, 1, 2} - {number}).index(1)
        for name, value in kept.items():
            assert torch.equal(found[f"cohort.peers.{place}.{name}"], value), "the last file of the dead one"
    # The killed one resumes where it was, and finishes with the files that the others left.
    with run(1, 400) as second:
        reached = rows(outs[1])
        until(lambda: rows(outs[1]) >= reached + 3, second)
        second.send_signal(signal.SIGTERM)
        assert second.wait(60) == 128 + signal.SIGTERM
    assert distilled(outs[1])[-1] > 0
