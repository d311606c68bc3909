"""A search by its command: killed and resumed it ends as one that was not, and its best recipe trains again."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError, as_yaml
from metamixer.studies.child_process import Child
from metamixer.tuning.outcome import importances, ranked
from metamixer.tuning.search import AllFailed, tune
from metamixer.tuning.storage import opened
from metamixer.tuning.tune_file import Search
from tests.command import metamixer
from tests.tuning.conftest import CONTENT


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tune") / "tune.yaml"
    path.write_text(as_yaml(CONTENT))
    return path


@pytest.fixture(scope="module")
def whole(file):
    """A search that nothing disturbed, and what it printed."""
    folder = file.parent / "whole"
    return folder, metamixer("tune", file, "--out", folder, "--threads", 1)


def content(folder):
    """All that a search found out, times left out."""
    trials = opened(Search.of(CONTENT), folder).trials
    return [(trial.number, trial.state, trial.params, trial.value, trial.intermediate_values) for trial in trials]


def test_a_search_leaves_a_table_plots_and_the_best_recipe(whole):
    folder, shown = whole
    study = opened(Search.of(CONTENT), folder)
    best = ranked(study)[0]
    assert best.value == max(trial.value for trial in study.trials if trial.state.name == "COMPLETE")
    recipe = Recipe.read(folder / "best.yaml")
    assert recipe.optim.lr == best.params["optim.lr"]
    assert recipe.digest == Recipe.read(folder / "trials" / f"{best.number:04}" / "recipe.yaml").digest
    assert recipe.differences(Recipe.of(CONTENT["recipe"])) != []
    last = json.loads((folder / "trials" / f"{best.number:04}" / "metrics.jsonl").read_text().splitlines()[-1])
    assert best.value == pytest.approx(sum(peer["accuracy"] for peer in last["val"]["peers"]) / 2)
    with (folder / "trials.csv").open() as opened_file:
        rows = list(csv.DictReader(opened_file))
    assert [int(row["trial"]) for row in rows] == [0, 1, 2]
    for row, trial in zip(rows, study.trials, strict=True):
        assert row["state"] == trial.state.name.lower()
        assert float(row["optim.lr"]) == trial.params["optim.lr"]
        assert int(row["epoch"]) == max(trial.intermediate_values)
    names = ["history.png", "curves.png"] + ["importance.png"] * bool(importances(study))
    for name in names:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert len(re.findall(r"^\[\d/3\] optim\.lr=", shown.stdout, re.MULTILINE)) == 3
    assert f"metamixer train {folder / 'best.yaml'}" in shown.stdout


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_search_that_was_killed_ends_as_if_nothing_had_happened(whole, file, tmp_path):
    """Once with its trial, and once while the trial lives on alone."""
    folder = tmp_path / "killed"
    words = [sys.executable, "-m", "metamixer", "tune", file, "--out", folder, "--threads", "1"]
    for number, alone in ((0, False), (1, True)):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        wanted = folder / "trials" / f"{number:04}" / "metrics.jsonl"
        try:
            until = time.monotonic() + 120
            while not (wanted.is_file() and wanted.read_text()) and time.monotonic() < until:
                assert process.poll() is None
                time.sleep(0.02)
            (server,) = children(process.pid)
            started = children(server)
            assert len(started) == 1
        finally:
            process.kill()
            process.wait()
        if not alone:
            os.kill(started[0], signal.SIGKILL)
    shown = metamixer("tune", file, "--out", folder, "--threads", 1)
    assert content(folder) == content(whole[0])
    assert (folder / "best.yaml").read_bytes() == (whole[0] / "best.yaml").read_bytes()
    assert "of 3 trials ran to their end" in shown.stdout


@pytest.mark.slow
def test_a_search_that_has_ended_does_nothing_and_more_trials_continue_it(whole, file):
    folder, _ = whole
    before = content(folder)
    mine = "# mine\n" + file.read_text()
    (folder / "search.yaml").write_text(mine)
    shown = metamixer("tune", folder / "search.yaml", "--out", folder, "--threads", 1)
    assert (folder / "search.yaml").read_text() == mine, "a file by hand is not replaced"
    assert content(folder) == before
    assert "[" not in shown.stdout.splitlines()[1]
    metamixer("tune", file, "--out", folder, "--threads", 1, "--trials", 5, "--jobs", 2)
    after = content(folder)
    assert after[:3] == before
    assert len(after) == 5
    assert all(state.is_finished() for _, state, *_ in after)


def test_a_fault_of_every_trial_ends_the_search(tmp_path, monkeypatch):
    def start(forks, job, log):
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as out:
            process = subprocess.Popen([sys.executable, "-c", "exit('error: no GPU')"], stderr=out)
        return Child(process, log, time.perf_counter())

    monkeypatch.setattr(Child, "start", start)
    search = Search.of(CONTENT | {"trials": 9})
    with pytest.raises(AllFailed, match=r"the first 3 trials failed: exit code 1: error: no GPU"):
        tune(search, tmp_path, jobs=2, threads=1)
    trials = opened(search, tmp_path).trials
    assert 3 <= len(trials) <= 4
    assert [trial.state.name for trial in trials][:2] == ["FAIL", "FAIL"]


def test_two_searches_in_one_folder_are_refused(search, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(RecipeError, match="another process works on this search"):
        tune(search, tmp_path)
    with pytest.raises(RecipeError, match="jobs=0"):
        tune(search, tmp_path, jobs=0)


def test_refusals_of_the_command(tmp_path):
    (tmp_path / "tune.yaml").write_text(as_yaml(CONTENT | {"space": {"optim.rate": [1, 2]}}))
    assert "optim.rate: no such option" in metamixer("tune", tmp_path / "tune.yaml", code=2).stderr
    assert "cannot be read" in metamixer("tune", tmp_path / "gone.yaml", code=2).stderr
