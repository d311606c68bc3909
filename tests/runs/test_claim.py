"""Runs that start together: each has a folder of its own, or is refused."""

import os
import subprocess
import sys

import pytest

from metamixer.config.yaml_file import RecipeError
from metamixer.runs.claim import LOCK, claimed

COMMAND = [sys.executable, "-c", "from metamixer.cli.app import main; main()"]
TINY = ["train", "data.train_limit=5", "--epochs", "1", "--batch-size", "50", "--device", "cpu", "--image-size", "8",
        "--mixer", "none", "--quiet"]  # fmt: skip
FILES = {"recipe.yaml", "data.json", "environment.json", "metrics.jsonl", "metrics.csv", "events", "checkpoints",
         "model.safetensors", "report.json"}  # fmt: skip


def at_once(place, *commands):
    """Exit codes and errors of real processes that start together."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([*COMMAND, *words], cwd=place, env=environment, stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL)
        for words in commands
    ]  # fmt: skip
    return [(process.communicate(timeout=300)[1], process.returncode) for process in started]


@pytest.mark.slow
def test_five_processes_and_one_folder(tmp_path):
    ended = at_once(tmp_path, *([[*TINY, "--peers", "resnet8", "--out", "run"]] * 5))
    assert sorted(code for _, code in ended) == [0, 2, 2, 2, 2]
    for errors, code in ended:
        assert code == 0 or len(errors.splitlines()) == 1, errors
        assert code == 0 or "run is in use: another process" in errors or "run is a run: --resume" in errors
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES


@pytest.mark.slow
def test_five_processes_and_names_of_their_own(tmp_path):
    peers = ["resnet8", "resnet8", "resnet8", "resnet8,resnet14", "resnet14,resnet8"]
    ended = at_once(tmp_path, *([*TINY, "--peers", each] for each in peers))
    assert [code for _, code in ended] == [0] * 5, ended
    made = sorted(path.name for path in (tmp_path / "runs").iterdir())
    name = "fashion-mini-{}-dml-none-seed0"
    alone = name.format("resnet8")
    others = [name.format(each) for each in ("resnet14-resnet8", "resnet8-resnet14")]
    assert made == sorted([alone, f"{alone}-2", f"{alone}-3", *others])
    for folder in (tmp_path / "runs").iterdir():
        assert {path.name for path in folder.iterdir()} == FILES


@pytest.mark.parametrize("words", [["--out", "run"], ["--resume", "run"], ["--resume", "auto", "--out", "run"]])
def test_a_run_that_lives_is_left_alone(words, tmp_path):
    with claimed(tmp_path / "run", resume=False):
        (tmp_path / "run" / "recipe.yaml").write_text("peers: [resnet8]")
        changes = [] if words[0] == "--resume" else ["--peers", "resnet8"]
        [(errors, code)] = at_once(tmp_path, ["train", *changes, *words])
        assert (code, len(errors.splitlines())) == (2, 1), errors
        assert "run is in use: another process trains this run" in errors
        assert {path.name for path in (tmp_path / "run").iterdir()} == {"recipe.yaml", LOCK}


def test_a_folder_is_claimed_again_inside_and_goes_when_it_stays_empty(tmp_path):
    folder = tmp_path / "a" / "run"
    with claimed(folder, resume=False):
        with claimed(folder, resume=True):
            pass
        assert (folder / LOCK).exists()
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").touch()
    with pytest.raises(RecipeError, match="is not empty: --resume"), claimed(folder, resume=False):
        pass
    with claimed(folder, resume=True):
        pass
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    with pytest.raises(RecipeError, match=r"notes.txt is a file"), claimed(folder / "notes.txt", resume=False):
        pass
