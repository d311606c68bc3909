"""Studies that run: side by side, stopped, killed, failing, on Ray. The table is the same whatever happens."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.config.yaml_file import RecipeError
from metamixer.runs.run import train
from metamixer.studies import Study, conduct
from metamixer.studies.local_runner import run_all

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


def test_a_study_that_is_killed_ends_with_the_same_table(whole, tmp_path):
    kill_and_go_on(whole, tmp_path, [random.Random(0).uniform(8, 14)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_study_that_is_killed_often_ends_with_the_same_table(whole, tmp_path, seed):
    draw = random.Random(seed)
    kill_and_go_on(whole, tmp_path, [draw.uniform(1, 20) for _ in range(3)])


def test_a_signal_stops_the_runs_too_and_the_same_command_goes_on(whole, tmp_path):
    file = write(tmp_path / "study.json", {**CONTENT, "recipe": {**TINY, "train": {**TINY["train"], "epochs": 400}}})
    process = command(file, tmp_path / "study", "--jobs", "2")
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "study").glob("runs/*/metrics.jsonl"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "goes on" in printed
    assert len(list((tmp_path / "study").glob("runs/*/checkpoints/LATEST"))) == 2
    alive = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False).stdout.split()
    assert not [pid for pid in alive if int(pid) != os.getpid()]


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


def test_memory_holds_further_runs_back(monkeypatch, tmp_path):
    """With no memory to spare one run at a time is left, whatever ``jobs`` says."""
    from metamixer.studies import local_runner

    begun, done, most = [], [], []

    class Sleeper:
        def __init__(self, cell):
            self.cell, self.process = cell, subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
            self.log, self.began, self.told = tmp_path / "log", time.perf_counter(), False
            begun.append(self)
            most.append(len(begun) - len(done))

    monkeypatch.setattr(local_runner, "_start", lambda cell, *_: Sleeper(cell))
    cells = Study.of({**CONTENT, "seeds": [0, 1]}).cells
    for available, wanted in ((0.0, 1), (float("inf"), 3)):
        for each in (begun, done, most):
            each.clear()
        monkeypatch.setattr(local_runner, "_available", lambda available=available: available)
        ended = run_all(cells, tmp_path, Study.of(CONTENT).content.measure, jobs=3, threads=1, ended=done.append)
        assert len(ended) == 4
        assert all(run.fault is None and run.bytes > 1e6 for run in ended)
        assert max(most) == wanted


@pytest.mark.slow
def test_ray_gives_the_same_table(whole, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra: pip install 'metamixer[ray]'")
    process = command(write(tmp_path / "study.json", CONTENT), tmp_path / "study", "--engine", "ray")
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == 0, printed
    assert results(tmp_path / "study") == results(whole[0])
