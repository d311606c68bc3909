"""Threads: those asked for, of the run, of the environment, or as many as there are processors for this process."""

import json

import pytest
import torch

from metamixer.config.yaml_file import RecipeError
from metamixer.runs import threads
from metamixer.runs.threads import set_threads


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Eight processors of which torch takes eight; the load and what a container leaves can be set."""
    here = {"threads": 8, "cores": 8, "load": 0.0}
    monkeypatch.setattr(torch, "get_num_threads", lambda: here["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: here.update(threads=count))
    monkeypatch.setattr(threads, "cores", lambda: here["cores"])
    monkeypatch.setattr(threads, "load", lambda: here["load"])
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return here


def test_as_many_as_this_process_may_use(machine):
    assert set_threads(None) == []
    assert machine["threads"] == 8
    machine["cores"] = 2
    assert set_threads(None) == []
    assert machine["threads"] == 2


def test_what_was_asked_for_counts_most(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    machine["cores"] = 2
    assert set_threads(None) == []
    assert machine["threads"] == 8, "that of the environment"
    (tmp_path / "environment.json").write_text(json.dumps({"threads": 4}))
    assert set_threads(None, tmp_path) == []
    assert machine["threads"] == 4, "that of the run"
    (said,) = set_threads(1, tmp_path)
    assert said == "this run began with 4 threads; with 1 its last bits differ"
    assert machine["threads"] == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"threads": null}', '{"threads": "many"}'])
def test_a_run_that_does_not_say_has_the_usual_number(machine, tmp_path, content):
    (tmp_path / "environment.json").write_text(content)
    set_threads(None, tmp_path)
    set_threads(None, tmp_path / "gone")
    assert machine["threads"] == 8


def test_a_busy_machine_is_warned_of(machine):
    machine["load"] = 5.2
    (said,) = set_threads(None)
    assert said == (
        "8 threads to train with, while other programs kept 5.2 of 8 processors busy in the last minute; "
        "--threads 3 may be faster"
    )
    machine["cores"] = 2
    assert set_threads(None) == [], "enough are free for two"
    machine.update(cores=8, load=20.0)
    assert set_threads(3) == [], "asked for"
    assert set_threads(None)[0].endswith("--threads 1 may be faster")


def test_zero_threads_are_refused():
    with pytest.raises(RecipeError, match="--threads 0: accepted are numbers from 1"):
        set_threads(0)
