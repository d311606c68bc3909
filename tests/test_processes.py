"""One run by two processes on this machine, started from the command line."""

import json
import os
import subprocess
import sys

import pytest

from metamixer.runs import evaluate_run


@pytest.mark.timeout(240)
def test_two_processes_train_one_run(tmp_path):
    command = [
        sys.executable, "-m", "metamixer", "train", "--peers", "resnet8,resnet8", "--device", "cpu", "--quiet",
        "--out", str(tmp_path / "run"), "data.train_limit=20", "train.devices=2", "train.epochs=2", "optim.lr=0.02",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ensemble") == 1  # the second process is silent
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["last_epoch"] == evaluate_run(tmp_path / "run").as_dict()
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    manifests = list((tmp_path / "run" / "checkpoints").glob("*/manifest.json"))
    assert {json.loads(path.read_text())["world_size"] for path in manifests} == {2}
