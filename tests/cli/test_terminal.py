"""Narrow terminals and terminals without Unicode: numbers stay whole, and no command ends in a traceback."""

import json
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from metamixer.cli import evaluation_tables
from metamixer.cli.console import table
from metamixer.cli.result_tables import result_table
from metamixer.cli.training_progress import Progress
from metamixer.core.registry import Entry
from metamixer.core.text import percent
from metamixer.evaluation.evaluate import Report, Score
from metamixer.evaluation.report import read_report
from metamixer.runs.run import Result
from metamixer.training.callbacks import EpochRecord, Start, StepRecord
from metamixer.training.trainer import Best
from tests.command import metamixer

NETWORK = "timm:mobilenetv3_small_100"
NAMES = [f"0 {NETWORK}", f"1 {NETWORK}", "ensemble", f"deployed: 1 {NETWORK}, epoch 100"]
WIDTHS = (60, 70, 80, 90, 100)


def words(text):
    """The numbers in a text."""
    return re.findall(r"[-+]?\d+(?:[.,]\d+)+(?: %)?|[-+]?\d+\.\d+", text)


def shown(thing, width):
    target = Console(file=StringIO(), width=width, highlight=False, markup=False)
    target.print(thing)
    text = target.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


def evaluation():
    """Every part that an evaluation can have, with values that cannot be taken for each other."""
    value = iter(np.linspace(0.10101, 0.98989, 400).tolist())
    network = lambda name, kind: {  # noqa: E731
        "name": name, "kind": kind, "accuracy": next(value), "top5": next(value), "nll": next(value),
        "brier": next(value), "ece": next(value), "gap": -next(value), "temperature": next(value),
        "calibrated": {"nll": next(value), "ece": next(value)},
    }  # fmt: skip
    networks = [network(name, kind) for name, kind in zip(NAMES, ("peer", "peer", "ensemble", "deployed"), strict=True)]
    box = lambda name: {  # noqa: E731
        "name": name, "max_box_acc_v2": next(value), "pointing": next(value), "energy": next(value),
        "max_box_acc": {key: next(value) for key in ("0.3", "0.5", "0.7")},
    }  # fmt: skip
    each = lambda: {name: next(value) for name in NAMES}  # noqa: E731
    kinds = {kind: {name: [next(value)] * 5 for name in NAMES} for kind in ("gaussian_noise", "jpeg_compression")}
    return {
        "images": 500, "split": "test", "networks": networks,
        "peers": {
            "agreement": 0.5, "ensemble_gain": 0.1, "pairwise_agreement": [[1.0, next(value)], [next(value), 1.0]],
            "pairwise_kl": [[0.0, next(value)], [next(value), 0.0]],
        },
        "robustness": {
            "images": 500, "clean": each(), "corruptions": {"kinds": kinds, "mean": each(), "source": "made"},
            "attacks": {"pgd-20": {"eps": 8 / 255, "accuracy": each()}},
        },
        "localization": {
            "method": "gradcam", "images": 500, "networks": [box(name) for name in NAMES], "centre_box": box("c"),
            "map_agreement": [[0.5] * 4] * 4,
        },
    }  # fmt: skip


def result(first):
    scores = [Score(name, first + 0.0111 * i, 0.9 + 0.01 * i, 1.25 + i) for i, name in enumerate(NAMES[:3])]
    report = Report(tuple(scores[:2]), scores[2], 0.5, 12_000)
    return Result(Path("run"), "test", report, scores[1], Best(100, 1, 0.5, 1.0), Path("run/model.safetensors"), 100)


def tables():
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        printer = type("Printer", (), {"print": lambda self, thing: printed.append(thing)})()
        patch.setattr(evaluation_tables, "console", lambda **_: printer)
        patch.setattr(evaluation_tables, "say", lambda *_, **__: None)
        evaluation_tables.show(read_report(evaluation()))
    counts = table(["class", "train", "val", "test"])
    counts.add_row(
        "a class with a name that is longer than any terminal of eighty columns has room for", "1,234", "5.6", "7.8"
    )
    return [*printed, counts]


def test_numbers_stay_whole_at_every_width():
    everything = [*tables(), result_table(result(0.331), 100, result(0.25))]
    assert len(everything) == 9
    for thing in everything:
        numbers = words(shown(thing, 300))
        assert numbers
        for width in WIDTHS:
            text = shown(thing, width)
            left = words(text)
            for number in numbers:
                assert number in left, f"{number} at {width}:\n{text}"


def test_names_are_shortened_and_stay_distinct():
    text = shown(result_table(result(0.331), 100, result(0.25)), 80)
    assert "0 timm:mobil" in text
    assert "1 timm:mobil" in text
    assert "…" in text
    assert "33.10 %" in text
    wide = shown(result_table(result(0.331), 100, result(0.25)), 200)
    assert "…" not in wide
    assert NAMES[0] in wide


@pytest.mark.parametrize("width", WIDTHS)
def test_the_bar_keeps_its_accuracies(width):
    target = Console(file=StringIO(), force_terminal=True, width=width, _environ={})
    progress = Progress(target, clock=lambda: 1.0)
    progress.on_start(Start(3, 10, 0, NAMES[:2], ""))
    terms = {name: torch.tensor([1.5, 2.5]) for name in ("task", "distill", "logit", "feature")}
    progress.on_step(StepRecord(1, 1, 32, terms, 0.1, 0.0, 0.05))
    report = result(0.331).last
    means = {name: value.tolist() for name, value in terms.items()}
    progress.on_epoch(EpochRecord(1, 10, 0.1, means, [0.251, 0.375], report, 640.0, 0.0, 1.0, ""))
    text = shown(progress.view(), width)
    progress.on_end()
    for share in (0.251, 0.375, *(score.accuracy for score in report.rows)):
        assert percent(share) in text


def photos(root):
    rng = np.random.default_rng(0)
    for name in ("猫", "née", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8)).save(root / name / f"{number} 猫.png")
    return root


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_no_command_needs_a_terminal_with_unicode(encoding, tmp_path):
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    sizes = ["--epochs", "1", "--batch-size", "8", "--device", "cpu", "--peers", "resnet8,resnet8"]
    commands = [
        ["check", data], ["train", "--data", data, *sizes, "--out", run], ["evaluate", run, "--device", "cpu"],
        ["predict", run, data], ["report", run, "--out", tmp_path / "x.html", "--no-pictures"],
        ["export", run, "--to", "safetensors"], ["preview", "--data", data, "--out", tmp_path / "x.png"], ["list"],
        ["--help"], ["train", "--help"], ["train", "--data", tmp_path / "猫猫"],
    ]  # fmt: skip
    code = (
        "import json, sys; from metamixer.cli.app import main\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['metamixer', *words]\n"
        "    try: main()\n"
        "    except SystemExit as end: print('code', end.code, flush=True)\n"
    )

    words_ = json.dumps([[str(word) for word in command] for command in commands])
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LANG": "C", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, words_], capture_output=True, env=environment, timeout=280)
    text = done.stdout.decode(encoding)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert re.findall(r"^code (\d+|None)$", text, re.M) == ["0"] * 10 + ["65"]
    assert "\\u732b" in text


def test_networks_of_timm_need_no_permission(tmp_path):
    run = tmp_path / "run"
    words_ = ["--data", "fashion-mini", "data.train_limit=5", "--epochs", "1", "--device", "cpu", "--mixer", "none"]
    out = metamixer("train", *words_, "--peers", "timm:test_resnet", "--out", run, "--quiet").stdout
    assert f"metamixer evaluate {run}" in out
    assert "--allow-imports" not in out
    metamixer("evaluate", run, "--quick", "--device", "cpu")


def test_the_list_of_names_fits_a_narrow_terminal():
    from metamixer.cli import list_names

    printed = []
    with pytest.MonkeyPatch.context() as patch:
        printer = type("Printer", (), {"print": lambda self, thing: printed.append(thing)})()
        patch.setattr(list_names, "console", lambda **_: printer)
        list_names._print("losses", {"a": Entry("", "words " * 30, "arXiv 1706.00384", ("features",), "the best peer")})
    assert "arXiv" in shown(printed[0], 60)
