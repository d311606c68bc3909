"""The batch script for SLURM: bash reads it, and it does what it says with stand-ins for SLURM's programs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.runs import outcome, photos
from tests.faults.test_restart import assert_same

SCRIPT = Path(__file__).parents[2] / "examples" / "train.slurm"
NASTY = ['data.name=it\'s $HOME `x` "a b" \\ * ; & | #', "optim.lr=0.05"]


def ran(words, environment, cwd):
    return subprocess.run(["bash", SCRIPT, *words], env=environment, cwd=cwd, capture_output=True, text=True)


def test_bash_reads_it():
    """bash reads it without running it, and so does shellcheck where it is installed."""
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-s", "bash", SCRIPT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_what_it_asks_for():
    """sbatch takes these lines before the first command only, and no comment after an option."""
    lines = SCRIPT.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    asked = [line.removeprefix("#SBATCH ") for line in lines[:first] if line.startswith("#SBATCH ")]
    assert len(asked) == sum(line.startswith("#SBATCH") for line in lines)
    assert all(option.startswith("--") and " " not in option for option in asked)
    grace = next(int(option.rpartition("@")[2]) for option in asked if option.startswith("--signal=B:TERM@"))
    assert int(lines[first].removeprefix("SHUTDOWN=")) == grace - 10


def test_every_word_reaches_the_program(tmp_path):
    """Quotes, spaces and what a shell would expand: the stand-in for srun writes down what it is handed."""
    out = tmp_path / "it's $(touch here)"
    write = f"printf '%s\\0' \"$@\" > {shlex.quote(str(tmp_path / 'words'))}; echo $OMP_NUM_THREADS"
    wanted = {"OUT": str(out), "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_NUM_NODES": "2"}
    environment = stubs(tmp_path, write) | wanted
    del environment["OMP_NUM_THREADS"]
    done = ran(NASTY, environment, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "8\n")
    found = (tmp_path / "words").read_text().split("\0")[:-1]
    begin = found.index("train")
    assert found[begin:] == [
        "train", *NASTY, "train.accelerator=cuda", "--resume", "auto", "--out", str(out), "--quiet",
    ]  # fmt: skip
    assert {"--nodes=2", "--ntasks=2", "--nnodes=2", "--nproc-per-node=4", "--max-restarts=3"} <= set(found)
    assert {"python", "--rdzv-endpoint=localhost:21234", "--rdzv-id=1234-0"} <= set(found)
    assert not (tmp_path / "here").exists()


# The script as it runs. The stand-ins do what SLURM's programs are documented to do, on this machine alone.

SRUN = """\
while [ "${1#--}" != "$1" ]; do shift; done
echo $$ > "$FAKE/step"
exec "$@"
"""
SCONTROL = """\
case "$1" in
    show) if [ "$2" = hostnames ]; then echo localhost; else echo "JobId=1234 JobState=$(cat "$FAKE/state")"; fi ;;
    requeue) echo "$2" >> "$FAKE/requeued" ;;
esac
"""
SCANCEL = """\
[ "$1 $2" = "--signal=TERM 1234" ] && kill -TERM "$(cat "$FAKE/step")"
"""


def stubs(tmp_path, srun=SRUN, state="RUNNING"):
    """An environment in which the programs of SLURM are ours."""
    place = tmp_path / "bin"
    place.mkdir(exist_ok=True)
    for name, text in (("srun", srun), ("scontrol", SCONTROL), ("scancel", SCANCEL)):
        (place / name).write_text(f"#!/bin/bash\n{text}")
        (place / name).chmod(0o755)
    (tmp_path / "state").write_text(state)
    return os.environ | {
        "PATH": f"{place}:{os.environ['PATH']}",
        "FAKE": str(tmp_path),
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS": "1",  # Lightning Fabric looks at it, and has to believe torchrun
        "SLURM_NTASKS_PER_NODE": "1",
        "OMP_NUM_THREADS": "1",
    }


STEP = """\
echo $$ > "$FAKE/step"
trap 'sleep 0.5; exit CODE' TERM
sleep 20 & wait
"""


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(1, "RUNNING", True), (1, "CANCELLED", False), (0, "RUNNING", False)],
    ids=["time is over", "cancelled", "finished"],
)
def test_a_signal_reaches_the_step_and_the_job_comes_again(tmp_path, code, state, requeued):
    """The end of its time sends the job to the queue, a scancel does not; the script waits for the checkpoint."""
    environment = stubs(tmp_path, STEP.replace("CODE", str(code)), state)
    job = subprocess.Popen(["bash", SCRIPT], env=environment, cwd=tmp_path)
    while not (tmp_path / "step").exists() or not (tmp_path / "step").read_text():
        time.sleep(0.02)
    time.sleep(0.2)  # until the stand-in listens
    began = time.monotonic()
    job.send_signal(signal.SIGTERM)
    assert job.wait(15) == code
    assert 0.4 < time.monotonic() - began < 10
    assert (tmp_path / "requeued").exists() == requeued


def test_a_failure_is_no_reason_to_come_again(tmp_path):
    environment = stubs(tmp_path, "exit 9\n")
    assert ran([], environment, tmp_path).returncode == 9
    assert not (tmp_path / "requeued").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_whose_time_is_over_ends_in_the_same_bits(tmp_path):
    """With real torchrun and two processes: stopped after an epoch, queued again, finished."""
    data = photos(tmp_path / "photos")
    words = [f"data.name={json.dumps(str(data))}", "data.val_share=0.2", "train.batch_size=8", "train.epochs=30"]
    words += ["peers=[resnet8, resnet8]", "peers.0.widths=[2,2,4,4]", "peers.1.widths=[2,4,4,4]"]

    environment = stubs(tmp_path) | {"ACCELERATOR": "cpu", "PROCESSES": "2", "PYTHON": sys.executable}
    done = ran(words, environment | {"OUT": str(tmp_path / "whole")}, tmp_path)
    assert done.returncode == 0, done.stderr
    environment["OUT"] = str(tmp_path / "run")
    job = subprocess.Popen(["bash", SCRIPT, *words], env=environment, cwd=tmp_path)
    rows = tmp_path / "run" / "metrics.jsonl"
    while job.poll() is None and (not rows.exists() or rows.read_text().count("\n") < 2):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(100) == 1  # torchrun's own code for a signal
    assert (tmp_path / "requeued").read_text() == "1234\n"
    assert rows.read_text().count("\n") < 30
    assert ran(words, environment | {"SLURM_RESTART_COUNT": "1"}, tmp_path).returncode == 0
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
