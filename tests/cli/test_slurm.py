"""Batch scripts for SLURM: what they say, that bash reads them, and that they do it with stand-ins for SLURM."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from metamixer.cli.slurm_script import Job, batch_script
from tests.command import metamixer
from tests.faults.runs import outcome, photos
from tests.faults.test_restart import assert_same

NASTY = ['data.name=it\'s $HOME `x` "a b" \\ * ; & | #', "optim.lr=0.05"]


def parsed(script):
    """bash reads it without running it, and so does shellcheck where it is installed."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "-s", "bash", "-"], input=script, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    return script


def directives(script):
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_script_asks_for_what_the_command_says():
    script = parsed(
        metamixer(
            "slurm", "optim.lr=0.2", "--nodes", 2, "--gpus-per-node", 4, "--time", "1-12:00:00", "--job-name", "big",
            "--cpus-per-process", 8, "--sbatch=--partition=gpu", "--sbatch=--account=me", "--grace", 300,
            "--setup", "source env/bin/activate", "--setup", "module load cuda", "--out", "runs/big",
            "--max-restarts", 1,
        ).stdout
    )  # fmt: skip
    assert directives(script) == [
        "--job-name=big", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=32",
        "--time=1-12:00:00", "--requeue", "--open-mode=append", "--signal=B:TERM@300", "--partition=gpu",
        "--account=me",
    ]  # fmt: skip
    assert script.startswith("#!/bin/bash\n")
    assert "\nsource env/bin/activate\nmodule load cuda\n" in script
    assert "--nnodes=2 --nproc-per-node=4 --max-restarts=1 " in script
    assert "export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=290" in script
    assert "metamixer train optim.lr=0.2 train.accelerator=cuda --resume auto --out runs/big --quiet &" in script


def test_a_machine_without_gpus():
    script = parsed(metamixer("slurm", "--gpus-per-node", 0, "--processes-per-node", 3).stdout)
    assert not any("gpus" in line or "cpus" in line for line in directives(script))
    assert "--nproc-per-node=3 " in script
    assert "train train.accelerator=cpu --resume" in script
    chosen = metamixer("slurm", "train.accelerator=auto", "--allow-imports").stdout
    assert "train train.accelerator=auto --allow-imports --resume auto" in chosen


def test_every_word_reaches_the_program(tmp_path, monkeypatch):
    """Quotes, spaces and what a shell would expand: the stand-in for srun writes down what it is handed."""
    out = tmp_path / "it's $(touch here)"
    script = parsed(batch_script(Job(gpus_per_node=0), NASTY, out))
    words = stubs(tmp_path, f"printf '%s\\0' \"$@\" > {shlex.quote(str(tmp_path / 'words'))}")
    done = subprocess.run(["bash", "-s"], input=script, env=words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = (tmp_path / "words").read_text().split("\0")[:-1]
    begin = found.index("train")
    assert found[begin:] == ["train", *NASTY, "--resume", "auto", "--out", str(out), "--quiet"]
    assert "--rdzv-endpoint=localhost:21234" in found
    assert "--rdzv-id=1234-0" in found
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", "0"], "--nodes=0: at least 1"),
        (["--gpus-per-node", "-1"], "--gpus-per-node=-1: at least 0"),
        (["--processes-per-node", "2"], "--processes-per-node=2: each process needs a GPU of its own, 1 or fewer"),
        (["--cpus-per-process", "0"], "--cpus-per-process=0: at least 1"),
        (["--max-restarts", "-1"], "--max-restarts=-1: at least 0"),
        (["--grace", "5"], "--grace=5: 30 to 3600 seconds"),
        (["--time", "soon"], "--time='soon': minutes, HH:MM:SS or D-HH:MM:SS"),
        (["--time", "1:00\n#SBATCH --uid=0"], "--time="),
        (["--job-name", "a b"], "--job-name='a b': letters, digits"),
        (["--sbatch", "partition=gpu"], "option 'partition=gpu' of sbatch: one like --partition=gpu"),
        (["--sbatch=--nodes=3"], "the script sets --nodes itself"),
        (["--sbatch=--mail-user=a\nrm x"], "option '--mail-user=a\\nrm x' of sbatch"),
        (["--setup", "one\ntwo"], "is no line of shell"),
        (["--setup", " "], "is no line of shell"),
        (["--out", "a\nb"], "--out 'a\\nb': a path of printable"),
        (["data.name=a\nb"], "a change of printable characters"),
        (["optim.lr=fast"], "optim.lr"),
        (["nothing.yaml"], "nothing.yaml: no such recipe"),
        (["--nodes", "3", "train.peer_groups=2"], "train.peer_groups: 2 groups of equal size cannot be made of 3"),
        (["--nodes", "9", "train.batch_size=8"], "train.batch_size: 8 images cannot be shared among 9 processes"),
        (["--nodes", "2", "train.mixing_groups=3"], "train.mixing_groups: 3 with 2 parts of a batch; 2 would work"),
    ],
    ids=" ".join,
)
def test_what_does_not_fit_is_said_before_the_queue(words, said):
    result = metamixer("slurm", *words, code=2)
    assert said in " ".join(result.stderr.split())
    assert result.stdout == ""


def test_a_folder_that_is_taken(tmp_path):
    metamixer("slurm", "--out", tmp_path)
    (tmp_path / "file").touch()
    assert "neither a run to go on with nor free" in metamixer("slurm", "--out", tmp_path, code=2).stderr
    (tmp_path / "recipe.yaml").touch()
    metamixer("slurm", "--out", tmp_path)


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
    script = tmp_path / "job.sh"
    script.write_text(batch_script(Job(gpus_per_node=0), [], tmp_path / "run"))
    job = subprocess.Popen(["bash", str(script)], env=environment, cwd=tmp_path)
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
    script = batch_script(Job(gpus_per_node=0), [], tmp_path / "run")
    assert subprocess.run(["bash", "-s"], input=script, env=environment, cwd=tmp_path, text=True).returncode == 9
    assert not (tmp_path / "requeued").exists()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_whose_time_is_over_ends_in_the_same_bits(tmp_path):
    """The printed script with real torchrun and two processes: stopped after an epoch, queued again, finished."""
    data = photos(tmp_path / "photos")
    words = [f"data.name={json.dumps(str(data))}", "data.val_share=0.2", "train.batch_size=8", "train.epochs=30"]
    words += ["peers=[resnet8, resnet8]", "peers.0.widths=[2,2,4,4]", "peers.1.widths=[2,4,4,4]"]

    def script(out):
        return metamixer(
            "slurm", *words, "--gpus-per-node", 0, "--processes-per-node", 2, "--python", sys.executable, "--out", out
        ).stdout

    environment = stubs(tmp_path)
    done = subprocess.run(["bash", "-s"], input=script(tmp_path / "whole"), env=environment, text=True, cwd=tmp_path)
    assert done.returncode == 0
    (tmp_path / "job.sh").write_text(script(tmp_path / "run"))
    job = subprocess.Popen(["bash", "job.sh"], env=environment, cwd=tmp_path)
    rows = tmp_path / "run" / "metrics.jsonl"
    while job.poll() is None and (not rows.exists() or rows.read_text().count("\n") < 2):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(100) == 1  # torchrun's own code for a signal
    assert (tmp_path / "requeued").read_text() == "1234\n"
    assert rows.read_text().count("\n") < 30
    again = environment | {"SLURM_RESTART_COUNT": "1"}
    assert subprocess.run(["bash", "job.sh"], env=again, cwd=tmp_path).returncode == 0
    assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "whole"))
