"""Trackers: real ones on a folder, and none of them stops or delays a training."""

import contextlib
import csv
import json
import sqlite3
import struct
import time
from dataclasses import replace

import pytest

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.runs import before_data
from metamixer.runs.run import train
from metamixer.training.callbacks import Start
from metamixer.training.interrupt import Interrupted
from metamixer.training.trackers import Tracker, trackers
from tests import toys
from tests.training.test_run_logger import record
from tests.training.test_trainer import SignalAfter

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboardX"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's own use of it
]
START = Start(9, 10, 0, ("0 a", "1 b"))
SETTINGS = {"optim.lr": 0.1, "peers.0.name": "resnet8"}
WARNED = "no more metrics for {}.*training continues, and metrics.jsonl has all metrics"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """MLflow's new database takes longer than the 30 seconds on a machine that is busy."""
    monkeypatch.setattr("metamixer.training.trackers._PATIENCE", 600.0)


class Noted:
    """A logger that notes what comes, and fails or sleeps where it is asked to."""

    def __init__(self, **at):
        self.calls, self.at = [], at

    def _called(self, name, *words):
        self.calls.append((name, *words))
        action = self.at.get(name, 0)
        if isinstance(action, BaseException):
            raise action
        time.sleep(action)

    def log_hyperparams(self, params):
        self._called("params", params)

    def log_metrics(self, metrics, step=None):
        self._called("metrics", metrics, step)

    def finalize(self, status):
        self._called("end", status)


def follow(tracker, records, start=START):
    tracker.on_start(start)
    for each in records:
        tracker.on_epoch(each)
    tracker.on_end()


def test_a_logger_gets_settings_every_epoch_and_the_end():
    logger, records = Noted(), [record(1), record(2)]
    follow(Tracker(logger, SETTINGS), records)
    rows = [{name: value for name, value in each.flat().items() if name != "step"} for each in records]
    assert logger.calls == [
        ("params", SETTINGS),
        ("metrics", rows[0], 10),
        ("metrics", rows[1], 20),
        ("end", "success"),
    ]


def test_how_training_ended(tmp_path):
    def ending(batches, *others):
        logger = Noted()
        try:
            raise OSError("trained again by who handles this")
        except OSError:
            made = toys.trainer(tmp_path / str(len(others)), 2, callbacks=[Tracker(logger), *others])
            with contextlib.suppress(Interrupted, ConnectionError):
                made.fit(batches, toys.validation())
        return logger.calls[-1]

    assert ending(toys.loader()) == ("end", "success")
    assert ending(toys.StopAt(toys.loader(), 2)) == ("end", "failed")
    assert ending(toys.loader(), SignalAfter(1)) == ("end", "aborted")


@pytest.mark.parametrize("place", ["params", "metrics", "end"])
@pytest.mark.parametrize("error", [OSError("no network"), SystemExit(1)], ids=["error", "exit"])
def test_one_that_fails_is_dropped_with_one_warning(place, error):
    logger = Noted(**{place: error})
    with pytest.warns(UserWarning, match=WARNED.format("Noted")) as said:
        follow(Tracker(logger), [record(1), record(2), record(3)])
    assert len(said) == 1
    assert logger.calls[-1][0] == place


def test_one_that_does_not_answer_delays_nothing():
    tracker = Tracker(Noted(metrics=3600), patience=0.3)
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"did not take the last metrics in 0\.3 seconds"):
        follow(tracker, [record(epoch) for epoch in range(1, 100)])
    assert 0.3 <= time.monotonic() - began < 10


def test_a_logger_of_fabric_is_a_tracker(tmp_path):
    from lightning_fabric.loggers import CSVLogger

    records = [record(1), record(2)]
    follow(Tracker(CSVLogger(str(tmp_path), name="", version=""), SETTINGS), records)
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_accuracy/1"]) for row in rows] == [each.train_accuracy[1] for each in records]
    assert [int(row["step"]) for row in rows] == [10, 20]


def test_tensorboard_has_every_metric(tmp_path):
    follow(trackers(["tensorboard", "tensorboard"], tmp_path, {})[0], [record(1), record(2, skipped=4)])
    (events,) = (tmp_path / "events").iterdir()
    content = events.read_bytes()
    for name in ("task/0", "train_accuracy/1", "skipped", "lr"):
        assert name.encode() in content


def test_mlflow_has_a_run_that_a_resumed_training_continues(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    folder = tmp_path / "run"
    folder.mkdir()
    many = SETTINGS | {f"key.{number}": "x" * 900 for number in range(150)}
    follow(*trackers(["mlflow"], folder, many), [record(1), record(2)])
    follow(*trackers(["mlflow"], folder, SETTINGS | {"optim.lr": 0.2}), [record(3)], replace(START, step=20))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        ((run, name, status),) = database.execute("select run_uuid, name, status from runs").fetchall()
        assert (name, status) == ("run", "FINISHED")
        assert json.loads((folder / "trackers.json").read_text()) == {"mlflow": run}
        found = database.execute("select step, value from metrics where key = 'task/0' order by step").fetchall()
        assert found == [(10, 2.0), (20, 3.0), (30, 4.0)]
        params = dict(database.execute("select key, value from params").fetchall())
    database.close()
    assert (params["optim.lr"], len(params), len(params["key.3"])) == ("0.1", 152, 500)


def test_a_run_that_the_server_does_not_know_begins_anew(tmp_path, monkeypatch):
    (tmp_path / "trackers.json").write_text('{"mlflow": "gone", "wandb": "other"}')
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    follow(*trackers(["mlflow"], tmp_path, SETTINGS), [record(1)])
    ids = json.loads((tmp_path / "trackers.json").read_text())
    assert ids["mlflow"] != "gone"
    assert ids["wandb"] == "other"


def scanned(path):
    """The records in a file of Weights & Biases: a header of 7 bytes, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    content, at, data = path.read_bytes(), 7, b""
    while at < len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        if at + 7 > len(content):
            return  # being written
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        if at + 7 + length > len(content):
            return
        data += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            one = wandb_internal_pb2.Record()
            one.ParseFromString(data)
            data = b""
            yield one


def history(folder):
    """The rows of all offline runs in a folder, and their ids."""
    rows, ids = [], set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        until = time.monotonic() + 60  # the process of wandb may write its last records after `finish` has returned
        while not (found := list(scanned(path))) or found[-1].WhichOneof("record_type") != "exit":
            assert time.monotonic() < until, f"{path} has no end"
            time.sleep(0.1)
        for one in found:
            ids |= {one.run.run_id} - {""}
            if items := one.history.item:
                names = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
                rows.append(names | {"step": one.history.step.num})
    return rows, ids


def test_wandb_has_a_run_offline_that_a_resumed_training_continues(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # no key is known there
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    follow(*trackers(["wandb"], folder, SETTINGS), [record(1), record(2)])
    follow(*trackers(["wandb"], folder, SETTINGS), [record(3)], replace(START, step=20))
    rows, ids = history(folder)
    assert [(row["step"], row["task/0"], row["epoch"]) for row in rows] == [(10, 2.0, 1), (20, 3.0, 2), (30, 4.0, 3)]
    assert ids == {json.loads((folder / "trackers.json").read_text())["wandb"]}


TINY = ["data.train_limit=10", "data.image_size=12", "train.batch_size=50", "train.epochs=2", "train.accelerator=cpu",
        "mixer=none"]  # fmt: skip


def test_a_recipe_names_trackers_and_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    plain = Recipe.of({"peers": ["resnet8", "resnet8"]}, TINY)
    recipe = Recipe.of({"peers": ["resnet8", "resnet8"]}, [*TINY, "train.trackers=[wandb, mlflow]"])
    assert recipe.digest == plain.digest
    assert plain.train.trackers == ("tensorboard",)
    train(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    wanted = [(row["step"], row["val"]["peers"][1]["nll"]) for row in rows]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        found = database.execute("select step, value from metrics where key = 'val/nll/1' order by step").fetchall()
        params = dict(database.execute("select key, value from params").fetchall())
    database.close()
    assert found == wanted
    assert (params["peers.0.name"], params["train.epochs"]) == ("resnet8", "2")
    assert [(row["step"], row["val/nll/1"]) for row in history(tmp_path / "run")[0]] == wanted
    assert not (tmp_path / "run" / "events").exists()
    train(plain, tmp_path / "run", resume=True)  # has ended; with others it is the same run


def test_what_a_recipe_may_name(monkeypatch):
    with pytest.raises(RecipeError, match=r"train\.trackers\.0: .*'tensorboard', 'wandb' or 'mlflow'"):
        Recipe.of({}, ["train.trackers=[comet]"])
    monkeypatch.setattr(before_data, "find_spec", lambda name: None if name == "wandb" else name)
    before_data.check_before_data(Recipe.of({}, ["train.trackers=[mlflow]"]))
    with pytest.raises(RecipeError, match=r"train\.trackers: wandb is not installed: pip install 'metamixer\[wandb\]'"):
        before_data.check_before_data(Recipe.of({}, ["train.trackers=[wandb, mlflow]"]))
