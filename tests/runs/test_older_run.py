"""A run folder that an older version wrote (``scripts/old_run.py``) is read, evaluated, resumed and exported."""

import csv
import json
import zipfile
from pathlib import Path

import pytest

from metamixer.export import export
from metamixer.report.read_runs import read_run
from metamixer.runs.classifier import Classifier
from metamixer.runs.run import evaluate_run, load_data, read_recipe, train


@pytest.fixture
def run(tmp_path):
    with zipfile.ZipFile(Path(__file__).with_name("before.zip")) as packed:
        packed.extractall(tmp_path / "run")
    return tmp_path / "run"


def test_it_is_read_and_evaluated(run):
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    assert "flat" in json.loads(line), "as it was written then"
    assert [epoch.epoch for epoch in read_run(run, "run").epochs] == [1]
    with pytest.warns(UserWarning, match=r"has no data\.json"):
        found, known = evaluate_run(run, "val", "BEST").as_dict(), json.loads(line)["val"]
    assert found["images"] == known["images"]
    for peer, other in zip(found["peers"], known["peers"], strict=True):
        assert peer["accuracy"] == pytest.approx(other["accuracy"], abs=2 / found["images"])
        assert peer["nll"] == pytest.approx(other["nll"], rel=1e-4)


def test_it_is_resumed_and_exported(run):
    """The end is that of a run which the older version was not stopped in, up to the arithmetic of processors."""
    recipe, whole = read_recipe(run), json.loads((run / "whole.json").read_text())
    with pytest.warns(UserWarning, match=r"has no data\.json"):
        result = train(recipe, run, resume=True)
    for peer, other in zip(result.last.as_dict()["peers"], whole["last_epoch"]["peers"], strict=True):
        assert peer["nll"] == pytest.approx(other["nll"], rel=1e-3)
    assert [result.best.peer, result.best.epoch] == [whole["best"]["peer"], whole["best"]["epoch"]]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], "flat" in line) for line in lines] == [(1, True), (2, False)]
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/accuracy/ensemble"]) for row in rows] == [
        line["val"]["ensemble"]["accuracy"] for line in lines
    ]
    assert len(read_run(run, "run").epochs) == 2

    export(run, to="safetensors", out=run / "best.safetensors")
    images = load_data(recipe).test.images[:4]
    mine, theirs = (Classifier.load(run / name) for name in ("model.safetensors", "best.safetensors"))
    assert mine.classes == theirs.classes
    assert (mine.probabilities(images) == theirs.probabilities(images)).all()
