"""Studies that run: side by side, stopped, killed, failing, on Ray. The table is the same whatever happens."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.config.yaml_file import RecipeError
from metamixer.runs.run import train
from metamixer.studies import Study, conduct, finished, read_lines
from metamixer.studies.child_process import Child
from metamixer.studies.local_runner import run_all
from metamixer.training.checkpoint import pointed, read

FILES = ("results.md", "results.tex", "results.csv", "results.json")
TINY = {
    "data": {"name": "fashion-mini", "train_limit": 20, "image_size": 12},
    "peers": [{"name": "resnet8", "widths": [4, 4, 8, 8]}, {"name": "resnet8", "widths": [4, 4, 8, 8]}],
    "train": {"epochs": 3, "batch_size": 50, "accelerator": "cpu"},
}
CONTENT = {
    "recipe": TINY,
    "methods": ["independent", "dml"],
    "mixers": ["none"],
    "seeds": [0],
    "baseline": {"methods": "independent"},
}


def results(folder):
    return {name: (folder / name).read_text() for name in FILES}


def write(path, content):
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def command(file, folder, *more):
    words = [sys.executable, "-m", "metamixer", "study", str(file), "--out", str(folder), "--threads", "1", *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nobody disturbed, run by the command."""
    folder = tmp_path_factory.mktemp("whole")
    process = command(write(folder / "study.json", CONTENT), folder / "study", "--jobs", "2")
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    return folder / "study", printed


def test_the_table_has_the_figures_of_the_runs(whole, tmp_path):
    folder, printed = whole
    rows = {row["methods"]: row for row in csv.DictReader((folder / "results.csv").read_text().splitlines())}
    study = Study.of(CONTENT)
    found = {}
    for cell in study.cells:
        report = json.loads((folder / "runs" / cell.name / "report.json").read_text())
        found[dict(cell.row)["methods"]] = report
        peers = [peer["accuracy"] for peer in report["last_epoch"]["peers"]]
        row = rows[dict(cell.row)["methods"]]
        assert float(row["accuracy_mean"]) == pytest.approx(sum(peers) / 2)
        assert float(row["deployed_mean"]) == report["deployed"]["accuracy"]
    assert float(rows["dml"]["accuracy_difference"]) == pytest.approx(
        float(rows["dml"]["accuracy_mean"]) - float(rows["independent"]["accuracy_mean"])
    )
    # The same recipe followed here, by hand.
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = train(study.cells[1].recipe, tmp_path / "run")
    finally:
        torch.set_num_threads(threads)
    assert result.last.as_dict() == found["dml"]["last_epoch"]
    assert "2 runs: 2 rows, seeds 0" in printed
    assert "metamixer report" in printed


def test_a_second_call_runs_nothing(whole):
    folder, _ = whole
    before = results(folder)
    told = []
    conduct(Study.of(CONTENT), folder, ended=told.append)
    assert [(run.seconds, run.fault) for run in told] == [(0.0, None)] * 2
    assert results(folder) == before
    shown = CliRunner().invoke(app, ["study", str(folder.parent / "study.json"), "--out", str(folder), "--dry-run"])
    assert shown.output.count("done") == 2


def test_run_folders_may_go(whole, tmp_path):
    folder, printed = whole
    assert "0 already finished; 2 to run, estimated time: unknown until the first run has ended" in printed
    assert "; left: about" in printed
    shutil.copytree(folder, tmp_path / "study", ignore=shutil.ignore_patterns("runs"))
    for name in FILES:
        (tmp_path / "study" / name).unlink()
    conduct(Study.of(CONTENT), tmp_path / "study")
    assert not (tmp_path / "study" / "runs").exists()
    assert results(tmp_path / "study") == results(folder)


def test_runs_of_before_there_were_lines_are_taken_in(whole, tmp_path):
    folder, _ = whole
    wanted = read_lines(folder / "results.jsonl")
    shutil.copytree(folder, tmp_path / "study", ignore=shutil.ignore_patterns("results.*"))
    conduct(Study.of(CONTENT), tmp_path / "study")
    assert results(tmp_path / "study") == results(folder)
    found = read_lines(tmp_path / "study" / "results.jsonl")
    other = {"process_seconds": None, "memory": None}  # only who started the process knows them
    assert sorted((line.model_copy(update=other) for line in found), key=str) == sorted(
        (line.model_copy(update=other) for line in wanted), key=str
    )
    for line in wanted:
        assert line.memory > 1e8
        assert line.process_seconds > line.seconds > 0
    assert [line.process_seconds for line in found] == [None] * 2
    for line in wanted:
        assert (line.threads, line.epochs) == (1, 3)
        assert {"accuracy", "deployed", "ensemble", "nll", "ensemble_nll", "train_accuracy", "ece"} <= set(line.metrics)
        (place,) = (folder / "runs").glob(f"*{line.digest[:8]}")
        last = json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])
        assert line.metrics["train_accuracy"] == pytest.approx(sum(last["train_accuracy"]) / 2)
        assert line.machine == json.loads((place / "environment.json").read_text())["processor"]


def test_an_evaluation_of_other_images_does_not_get_into_the_table(whole, tmp_path):
    """``metamixer evaluate --split val`` puts its own in the place of the study's."""
    (place, *_) = (whole[0] / "runs").glob("independent*")
    folder = tmp_path / "run"
    shutil.copytree(place, folder)
    assert finished(folder, MEASURE)
    found = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").write_text(json.dumps({**found, "split": "val"}))
    assert not finished(folder, MEASURE)
    (folder / "report.json").write_text("{")
    assert not finished(folder, MEASURE)


def kill_and_go_on(whole, tmp_path, moments):
    """SIGKILL to the study's process; its runs may live on, as they do when a machine's memory runs out."""
    file = write(tmp_path / "study.json", CONTENT)
    for moment in moments:
        process = command(file, tmp_path / "study")
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    process = command(file, tmp_path / "study")
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    assert results(tmp_path / "study") == results(whole[0])


@pytest.mark.slow
def test_a_study_that_is_killed_ends_with_the_same_table(whole, tmp_path):
    kill_and_go_on(whole, tmp_path, [random.Random(0).uniform(8, 14)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_study_that_is_killed_often_ends_with_the_same_table(whole, tmp_path, seed):
    draw = random.Random(seed)
    kill_and_go_on(whole, tmp_path, [draw.uniform(1, 20) for _ in range(3)])


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.timeout(400)
def test_a_signal_stops_the_runs_too_and_the_same_command_goes_on(whole, tmp_path):
    file = write(tmp_path / "study.json", {**CONTENT, "recipe": {**TINY, "train": {**TINY["train"], "epochs": 400}}})
    process = command(file, tmp_path / "study", "--jobs", "2", "--nice", "3")
    try:
        deadline = time.monotonic() + 240
        while len(list((tmp_path / "study").glob("runs/*/metrics.jsonl"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (server,) = children(process.pid)
        runs = children(server)
        own = os.getpriority(os.PRIO_PROCESS, process.pid)
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in runs] == [min(19, own + 3)] * 2
    finally:
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command resumes it" in printed
    assert len(list((tmp_path / "study").glob("runs/*/checkpoints/LATEST"))) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in (server, *runs))


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path):
    broken = {"broken": ["loss=dml", f"data.name={tmp_path / 'nowhere'}/"], "dml": "dml"}
    content = {**CONTENT, "methods": broken, "baseline": {}}
    file = write(tmp_path / "study.json", content)
    process = command(file, tmp_path / "study")
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "broken + none, seed 0: failed: exit code 1" in printed
    assert "nowhere" in printed
    table = (tmp_path / "study" / "results.md").read_text()
    assert "1 of 2 runs are missing" in table
    assert "Failed: broken + none, seed 0" in table
    assert "| dml | none | 1 |" in table


@pytest.mark.slow
def test_a_run_of_two_processes(tmp_path):
    """The first starts the second, which must not wait for the run that they both are."""
    content = {**CONTENT, "methods": ["dml"], "baseline": {}}
    content["recipe"] = {**TINY, "train": {**TINY["train"], "epochs": 1, "devices": 2}}
    done = []
    conduct(Study.of(content), tmp_path, threads=1, ended=done.append)
    assert [run.fault for run in done] == [None]
    (checkpoints,) = (tmp_path / "runs").glob("*/checkpoints")
    assert read(pointed(checkpoints, "LATEST")).manifest["world_size"] == 2
    with pytest.raises(RecipeError, match=r"train\.devices=2: accepted with engine=ray is 1"):
        conduct(Study.of(content), tmp_path, engine="ray")


def test_a_network_that_does_not_exist_is_told_before_the_first_run(tmp_path):
    study = Study.read(write(tmp_path / "study.json", {**CONTENT, "networks": {"typo": ["peers=[resnt8, resnet8]"]}}))
    with pytest.raises(RecipeError, match=r"peers\.0: 'resnt8' is not a network"):
        conduct(study, tmp_path / "study", ended=lambda run: pytest.fail("it ran"))


def test_a_study_that_was_written_by_hand_is_not_replaced(whole, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(whole[0], folder)
    assert (folder / "study.yaml").read_text() == Study.of(CONTENT).as_yaml()
    mine = "# mine\n" + Study.of({**CONTENT, "seeds": [0, 1]}).as_yaml()
    (folder / "study.yaml").write_text(mine)
    conduct(Study.read(write(tmp_path / "part.json", CONTENT)), folder)
    assert (folder / "study.yaml").read_text() == mine
    assert results(folder) == results(whole[0])


def test_two_calls_in_one_folder_and_other_threads_are_refused(tmp_path):
    from metamixer.studies.run_study import _alone

    study = Study.of(CONTENT)
    with _alone(tmp_path), pytest.raises(RecipeError, match="another process"):
        conduct(study, tmp_path)
    (tmp_path / "threads").write_text("3\n")
    with pytest.raises(RecipeError, match="begun with 3 threads"):
        conduct(study, tmp_path, threads=2)
    with pytest.raises(RecipeError, match="jobs=0"):
        conduct(study, tmp_path, jobs=0)
    with pytest.raises(RecipeError, match="nice=3"):
        conduct(study, tmp_path, nice=3, engine="ray")
    shown = CliRunner().invoke(app, ["study", str(write(tmp_path / "s.json", CONTENT)), "--jobs", "many"])
    assert shown.exit_code == 2
    assert "--jobs many: accepted are numbers from 1, and auto" in shown.output
    shown = CliRunner().invoke(app, ["study", str(tmp_path / "s.json"), "other.jsonl"])
    assert shown.exit_code == 2
    assert "after --results only" in shown.output


@pytest.fixture
def sleepers(monkeypatch, tmp_path):
    """Runs that only sleep; what has begun, what has ended, and how many there were at once."""
    from metamixer.studies import local_runner

    begun, done, most = [], [], []

    def start(cell, *_):
        begun.append(cell)
        most.append(len(begun) - len(done))
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
        return Child(process, tmp_path / "log", time.perf_counter())

    monkeypatch.setattr(local_runner, "begin", start)
    return begun, done, most


CELLS = Study.of({**CONTENT, "seeds": [0, 1]}).cells
MEASURE = Study.of(CONTENT).content.measure


@pytest.mark.parametrize(
    ("available", "resident", "wanted"),
    [(0, 0, 1), (float("inf"), 0, 4), (400, 0, 3), (400, 100, 4), (220, 50, 2)],
    ids=["none", "much", "others still grow", "others are grown", "others half grown"],
)
def test_memory_holds_further_runs_back(monkeypatch, tmp_path, sleepers, available, resident, wanted):
    """With no memory to spare one run at a time is left, whatever ``jobs`` says."""
    from metamixer.core import machine

    _, done, most = sleepers
    monkeypatch.setattr(machine, "available_memory", lambda: available)
    monkeypatch.setattr(machine, "resident_memory", lambda _: resident)
    # A finished run reports the memory it took, far more than these numbers: only the first starts are checked.
    run_all(CELLS, tmp_path, MEASURE, jobs=9, threads=1, memory=100, ended=done.append)
    assert len(done) == 4
    assert all(run.fault is None and run.bytes > 1e6 for run in done)
    assert max(most) == wanted


def test_a_run_that_another_process_works_on_holds_no_place(tmp_path, sleepers):
    begun, done, _ = sleepers
    (tmp_path / "runs").mkdir()
    lock = FileLock(tmp_path / "runs" / f"{CELLS[0].name}.lock")
    lock.acquire()

    def ended(run):
        done.append(run)
        if len(done) == 3:
            assert CELLS[0] not in begun
            lock.release()

    run_all(CELLS, tmp_path, MEASURE, jobs=1, threads=1, ended=ended)
    assert begun == [*CELLS[1:], CELLS[0]]


@pytest.mark.slow
def test_ray_gives_the_same_table(whole, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra: pip install 'metamixer[ray]'")
    process = command(write(tmp_path / "study.json", CONTENT), tmp_path / "study", "--engine", "ray")
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == 0, printed
    assert results(tmp_path / "study") == results(whole[0])
