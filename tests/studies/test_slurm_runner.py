"""Studies as jobs of SLURM: by submitit's own executors, and by stand-ins for the programs of SLURM.

No real SLURM was there. The stand-ins do what its manual says: they run the script that submitit hands to sbatch once
for each task of the array, signal all processes of a job at once, and run a job again that was put back.
"""

import json
import os
import signal
import stat
import sys
import time

import pytest
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.config.yaml_file import RecipeError
from metamixer.studies import Study, conduct
from tests.studies.test_run_study import CONTENT, TINY, children, command, results, write

pytest.importorskip("submitit", reason="submitit is an extra: pip install 'metamixer[slurm]'")
pytestmark = pytest.mark.timeout(600)

SHORT = {**CONTENT, "recipe": {**TINY, "train": {**TINY["train"], "epochs": 2}}}
LONG = {**CONTENT, "methods": ["dml"], "baseline": {}, "recipe": {**TINY, "train": {**TINY["train"], "epochs": 60}}}

SBATCH = """#!{python}
import os, re, subprocess, sys
place, script = os.environ["STAND_IN"], sys.argv[1]
text = open(script).read()
with open(place + "/script", "w") as copy:  # like sbatch's own: submitit moves its file as soon as this returns
    copy.write(text)
last = int(re.search(r"#SBATCH --array=0-(\\d+)%", text).group(1)) if "--array" in text else 0
for task in range(last + 1):
    job = f"4711_{{task}}" if last else "4711"
    names = {{"SLURM_JOB_ID": "4711"}}
    if last:
        names |= {{"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": str(task)}}
    again, was = (f"{{place}}/{{word}}-{{job}}" for word in ("again", "was"))
    loop = f'echo $$ > "{{place}}/pid-{{job}}"; while :; do bash "{{place}}/script"; [ -e "{{again}}" ] || break; '
    loop += f'mv "{{again}}" "{{was}}"; done; touch "{{place}}/ended-{{job}}"'
    subprocess.Popen(["bash", "-c", loop], env=os.environ | names, start_new_session=True,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("Submitted batch job 4711")
"""
SRUN = 'while [ "${1#-}" != "$1" ]; do case "$1" in *=*|--unbuffered) shift;; *) shift 2;; esac; done; exec "$@"'
SCONTROL = 'touch "$STAND_IN/again-$2"'
SACCT = """echo "JobID|State|NodeList"
for path in "$STAND_IN"/pid-*; do job=${path##*/pid-}; [ -e "$STAND_IN/ended-$job" ] && state=COMPLETED || state=RUNNING
echo "$job|$state|here"; done"""
SCANCEL = 'echo "$1" >> "$STAND_IN/cancelled"'


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins in the search path, and a folder for what they note."""
    place = tmp_path / "stand-ins"
    place.mkdir()
    shell = {"srun": SRUN, "scontrol": SCONTROL, "sacct": SACCT, "scancel": SCANCEL}
    programs = {"sbatch": SBATCH.format(python=sys.executable)} | {
        name: f"#!/usr/bin/env bash\n{text}\n" for name, text in shell.items()
    }
    for name, text in programs.items():
        (place / name).write_text(text)
        (place / name).chmod((place / name).stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(place))
    return place


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same runs by processes of this machine."""
    folder = tmp_path_factory.mktemp("local")
    conduct(Study.of(SHORT), folder, threads=1, jobs=2)
    return folder


def below(pid):
    return [pid, *(each for child in children(pid) for each in below(child))]


def until(found, process=None, seconds=180):
    end = time.monotonic() + seconds
    while not found():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_array_of_jobs_gives_the_same_table(local, slurm, tmp_path):
    file = write(tmp_path / "study.json", SHORT)
    options = ["partition=gpu", "time=30", "array_parallelism=1", "account=mine", "gpus_per_node=1"]
    process = command(file, tmp_path / "study", "--engine", "slurm", *(f"--slurm={option}" for option in options))
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    assert results(tmp_path / "study") == results(local)
    asked = {line.removeprefix("#SBATCH ") for line in (slurm / "script").read_text().splitlines()}
    wanted = {"partition=gpu", "time=30", "array=0-1%1", "account=mine", "gpus-per-node=1", "cpus-per-task=1"}
    assert {f"--{each}" for each in wanted} | {"--signal=USR2@90", "--job-name=metamixer"} <= asked
    for run in (tmp_path / "study" / "results.jsonl").read_text().splitlines():
        assert json.loads(run)["memory"] > 1e8


@pytest.mark.slow
def test_a_job_that_is_out_of_time_continues_in_another_one(slurm, tmp_path):
    """SLURM's signal reaches all processes of the job; the run is resumed to the same table."""
    wanted = tmp_path / "wanted"
    conduct(Study.of(LONG), wanted, threads=1)
    process = command(write(tmp_path / "study.json", LONG), tmp_path / "study", "--engine", "slurm")
    (cell,) = Study.of(LONG).cells
    log = tmp_path / "study" / "runs" / cell.name / "metrics.jsonl"
    until(lambda: log.exists() and log.read_text().count("\n") >= 2, process)
    for pid in below(int((slurm / "pid-4711").read_text()))[2:]:  # not the stand-in's own loop and script
        os.kill(pid, signal.SIGUSR2)
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    assert (slurm / "was-4711").exists()  # scontrol was asked to requeue it, and it came back
    assert results(tmp_path / "study") == results(wanted)
    one, other = ((place / "runs" / cell.name / "metrics.jsonl").read_text() for place in (wanted, tmp_path / "study"))
    assert one.count("\n") == other.count("\n") == 60


@pytest.mark.slow
def test_a_signal_to_the_study_cancels_its_jobs(slurm, tmp_path):
    process = command(write(tmp_path / "study.json", LONG), tmp_path / "study", "--engine", "slurm")
    until(lambda: (slurm / "pid-4711").exists(), process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGINT
    assert "the same command resumes it" in printed
    assert (slurm / "cancelled").read_text() == "4711\n"
    for pid in below(int((slurm / "pid-4711").read_text()))[::-1]:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_submitits_own_executors_give_the_same_table(local, tmp_path, cluster):
    done = []
    conduct(Study.of(SHORT), tmp_path, threads=1, engine="slurm", slurm={"cluster": cluster}, ended=done.append)
    assert [run.fault for run in done] == [None, None]
    assert all(run.seconds > 0 and run.bytes > 1e8 for run in done)
    assert results(tmp_path) == results(local)


@pytest.mark.slow
def test_a_run_that_fails_says_why(tmp_path):
    content = {**SHORT, "methods": {"broken": ["loss=dml", "optim.lr=1e30"]}, "baseline": {}}
    done = []
    conduct(Study.of(content), tmp_path, threads=1, engine="slurm", slurm={"cluster": "debug"}, ended=done.append)
    assert "exit code 1: error: " in done[0].fault
    assert "Failed: broken" in (tmp_path / "results.md").read_text()


def test_what_is_refused(tmp_path, monkeypatch):
    study = Study.of(SHORT)
    for options, line in [
        ({"cluster": "moon"}, "cluster=moon: accepted are slurm, local and debug"),
        ({"cluster": "local", "particle": "gpu"}, "--slurm particle: accepted are account, "),
        ({"cluster": "local", "time": "soon"}, "timeout_min"),
    ]:
        with pytest.raises(RecipeError, match=line):
            conduct(study, tmp_path, threads=1, engine="slurm", slurm=options)
    with pytest.raises(RecipeError, match=r"partition.*with engine=local: accepted with engine=slurm"):
        conduct(study, tmp_path, slurm={"partition": "gpu"})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="srun is not on this machine"):
        conduct(study, tmp_path, threads=1, engine="slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RecipeError, match=r"pip install 'metamixer\[slurm\]'"):
        conduct(study, tmp_path, threads=1, engine="slurm")
    words = ["study", str(write(tmp_path / "s.json", SHORT)), "--engine", "slurm", "--slurm", "partition"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 2
    assert "--slurm partition: accepted is KEY=VALUE" in shown.output
