"""Jobs that are forked: processes of their own in all that matters, and with the bits of any other process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metamixer.runs.run import train
from metamixer.studies import Study, fork_server
from metamixer.studies.child_process import Child, stop
from metamixer.studies.forks import LOST, Forks
from metamixer.studies.local_runner import run_all
from tests.studies.test_run_study import CONTENT, TINY, write

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

JOB = """
import json, os, signal, sys, time
job = json.load(open(sys.argv[1]))
if "do" in job:
    exec(job["do"])
else:
    import __main__
    print(json.dumps({
        "here": os.getcwd(), "main": __main__.__spec__.name, "argv": sys.argv[1:], "in": sys.stdin.read(),
        "threads": os.environ["OMP_NUM_THREADS"], "variable": os.environ["A_VARIABLE"],
        "leads": os.getsid(0) == os.getpid(), "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "open": sorted(set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}),
        "imported": "metamixer.runs.run" in sys.modules,
    }))
"""
SLEEP = {"do": "time.sleep(60)"}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package of jobs that say what they see."""
    place = tmp_path_factory.mktemp("package")
    (place / "jobs").mkdir()
    (place / "jobs" / "__init__.py").touch()
    (place / "jobs" / "__main__.py").write_text(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(place))
        patch.setenv("A_VARIABLE", "a value")
        yield "jobs"


@pytest.fixture(scope="module")
def forks(package):
    with Forks(package, 1) as made:
        yield made


def until_ended(child):
    until = time.monotonic() + 120
    while (found := child.look()) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return found


def test_a_job_sees_what_a_process_of_its_own_sees(forks, package, tmp_path):
    children = [Child.start(forks, {}, tmp_path / "forked.txt")]
    children.append(Child.start(Forks(package, 1, forked=False), {}, tmp_path / "started.txt"))
    assert isinstance(children[1].process, subprocess.Popen)
    for child in children:
        assert (end := until_ended(child)).fault is None
        assert end.bytes > 1e6
    forked, started = (json.loads((tmp_path / f"{name}.txt").read_text()) for name in ("forked", "started"))
    assert (forked.pop("imported"), started.pop("imported")) == (True, False)
    assert forked.pop("argv") == [str(tmp_path / "forked.json")]
    assert started.pop("argv") == [str(tmp_path / "started.json")]
    for seen in (forked, started):
        seen["open"] = len(seen["open"])  # the job's own file, and the folder that is listed
    assert forked == started
    assert forked["variable"] == "a value"


def test_a_fault_a_crash_and_a_signal_take_one_job_only(forks, tmp_path):
    jobs = {
        "exit": {"do": "sys.exit('error: no GPU')"},
        "raise": {"do": "raise ValueError('no such thing')"},
        "crash": {"do": "os.kill(os.getpid(), signal.SIGSEGV)"},
        "quiet": {"do": "print(1)"},
    }
    children = {name: Child.start(forks, job, tmp_path / f"{name}.txt") for name, job in jobs.items()}
    found = {name: until_ended(child).fault for name, child in children.items()}
    assert found["exit"].startswith("exit code 1: error: no GPU (all of it in ")
    assert "exit code 1" in found["raise"]
    assert "ValueError: no such thing" in found["raise"]
    assert found["crash"].startswith("killed by SIGSEGV: it printed nothing")
    assert found["quiet"] is None


def test_the_server_takes_no_notice_of_signals_and_has_one_thread(forks, tmp_path):
    child = Child.start(forks, SLEEP, tmp_path / "log.txt")
    while not child.process.pid:
        child.process.poll()
    server = forks._server.pid
    os.killpg(server, signal.SIGTERM)  # as SLURM sends it to every process of a job
    assert "Threads:\t1\n" in Path(f"/proc/{server}/status").read_text()
    child.process.send_signal(signal.SIGTERM)
    assert "killed by SIGTERM" in until_ended(child).fault
    assert forks._server.poll() is None


def test_jobs_that_were_only_just_asked_for_and_those_that_lost_their_server(package, tmp_path):
    with Forks(package, 1) as forks:
        # While the server still imports: they begin later, and end by the signal at once.
        children = [Child.start(forks, SLEEP, tmp_path / f"{number}.txt") for number in range(2)]
        stop(children)
        assert ["killed by SIGTERM" in until_ended(child).fault for child in children] == [True, True]
        # Killed it leaves its jobs alive, and new ones are processes of this one.
        child = Child.start(forks, {"do": "time.sleep(1.5); print('whole')"}, tmp_path / "one.txt")
        while not child.process.pid:
            child.process.poll()
        forks._server.kill()
        found = until_ended(child)
        assert found.fault.startswith(f"{LOST}: whole")
        other = Child.start(forks, {}, tmp_path / "two.txt")
        assert isinstance(other.process, subprocess.Popen)
        assert until_ended(other).fault is None


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_two_runs_side_by_side_in_two_threads_have_the_bits_of_this_process(tmp_path):
    short = {**TINY, "train": {**TINY["train"], "epochs": 1}}
    study, done = Study.of({**CONTENT, "recipe": short}), []
    run_all(study.cells, tmp_path, study.content.measure, jobs=2, threads=2, ended=done.append)
    assert [run.fault for run in done] == [None, None]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for cell in study.cells:
            train(cell.recipe, tmp_path / "here" / cell.name)
    finally:
        torch.set_num_threads(before)
    for cell in study.cells:
        forked, here = (
            {path.name: path.read_bytes() for path in (place / cell.name).glob("checkpoints/*/*.safetensors")}
            for place in (tmp_path / "runs", tmp_path / "here")
        )
        assert forked == here
        assert forked


AHEAD = """
import importlib, sys, torch
from pathlib import Path
class Asked(Exception): ...
def refuse(*_, **__): raise Asked
with __import__("unittest.mock").mock.patch.multiple(torch.cuda, **dict.fromkeys(
    ("is_available", "device_count", "init", "_lazy_init", "current_device", "get_device_properties"), refuse
)):
    try:
        torch.cuda.is_available()
    except Asked:
        for name in sys.argv[2:]:
            importlib.import_module(name)
from metamixer.studies import Study
from metamixer.studies.run_worker import follow_cell
study = Study.read(sys.argv[1])
before = set(sys.modules)
follow_cell(study.cells[1].recipe.as_dict(), Path(sys.argv[1]).parent / "run", study.content.measure, 1)
print(*sorted(name for name in set(sys.modules) - before if not name.startswith("metamixer.")))
"""


def test_the_server_asks_for_no_gpu_and_a_run_imports_next_to_nothing(tmp_path):
    """A process that has asked CUDA for its devices cannot hand it on by a fork."""
    ahead = ("metamixer.studies", *fork_server.NEEDED)
    words = [sys.executable, "-c", AHEAD, str(write(tmp_path / "study.json", CONTENT)), *ahead]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) < 10, done.stdout
