"""Every example runs as it stands and learns far more than chance, in seconds, on a CPU."""

import csv
import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

from metamixer import DML, Cohort, MetaMixer
from metamixer.data import load
from metamixer.models import resnet8
from metamixer.runs.classifier import Classifier

ROOT = Path(__file__).parents[2]
SMALL = ["--limit", "60", "--size", "14"]  # of the images that come with the package


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def python_in(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder as an engineer has it, and one image beside it that nobody trains on."""
    root = tmp_path_factory.mktemp("engineer")
    data = load("fashion-mini", image_size=14)
    for label in (1, 8, 9):  # trousers, bags, ankle boots
        folder = root / "photos" / data.classes[label].replace("/", " ")
        folder.mkdir(parents=True)
        chosen = (data.train.labels == label).nonzero()[:60, 0]
        for number, image in enumerate(data.train.fetch(chosen)):
            Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    new = (data.test.labels == 9).nonzero()[0]
    Image.fromarray(data.test.fetch(new)[0, 0].numpy()).save(root / "new.png")
    return root / "photos", root / "new.png", data.classes[9].replace("/", " ")


@pytest.fixture(scope="module")
def engineered(photos, tmp_path_factory):
    folder, new, _ = photos
    run = tmp_path_factory.mktemp("engineered") / "runs" / "photos"
    words = [str(folder), str(new), "--peers", "resnet8,resnet14", "--epochs", "6", "--out", str(run)]
    return run, words, example("engineer")["main"](words)


def test_engineer(photos, engineered, capsys):
    run, words, (accuracy, named) = engineered
    assert accuracy > 2 / 3  # twice the chance of three classes
    assert named == photos[2]
    assert Classifier.load(run / "model.safetensors").size == (14, 14)
    assert json.loads((run / "report.json").read_text())["split"] == "test"
    # Started again it does not train again, and says the same.
    before = (run / "metrics.jsonl").read_text()
    assert example("engineer")["main"](words) == (accuracy, named)
    assert (run / "metrics.jsonl").read_text() == before
    assert "is deployed" in capsys.readouterr().out


def test_the_guides_code_runs_as_it_is_printed(photos, engineered, tmp_path, monkeypatch):
    short, loop, use = python_in("docs/guide.md")
    peers = [resnet8(num_classes=3, in_channels=1) for _ in range(2)]
    names = {"mixer": MetaMixer(), "cohort": Cohort(peers), "loss": DML(), "num_classes": 3, "step": 1, "steps": 2}
    names |= {"generator": torch.Generator().manual_seed(0), "labels": torch.tensor([0, 1, 2, 0])}
    names |= {"images": torch.randn(4, 1, 12, 12), "companions": torch.randn(4, 1, 12, 12)}
    exec(loop, names)  # noqa: S102
    assert names["terms"]["task"].shape == (2,)
    Image.open(photos[1]).save(tmp_path / "new.jpg")
    (tmp_path / "runs").symlink_to(engineered[0].parent)
    Image.open(photos[1]).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(short, names)  # noqa: S102
    assert names["model"].predict("cat.jpg").label == photos[2]
    names = {}
    exec(use, names)  # noqa: S102
    assert names["probabilities"].shape == (1, 3)
    assert names["classifier"].classes[int(names["probabilities"].argmax())] == photos[2]


def test_the_page_quotes_the_examples():
    """Line by line, but for docstrings that it leaves out; and no example is missing on it."""
    page = (ROOT / "docs" / "examples.md").read_text()
    files = list((ROOT / "examples").glob("*.py"))
    assert [file.name for file in files if f"(../examples/{file.name})" not in page] == []
    known = {line.strip() for file in files for line in file.read_text().splitlines()}
    quoted = [line.strip() for block in python_in("docs/examples.md") for line in block.splitlines()]
    assert len(quoted) > 20
    assert [line for line in quoted if line not in known] == []
    for name, words in re.findall(r"python examples/(\w+)\.py ?(.*)", page):
        said = (ROOT / "examples" / f"{name}.py").read_text()
        assert all(f'"{option}"' in said for option in re.findall(r"--\w+", words)), name


def test_researcher(tmp_path, capsys):
    names = example("researcher")
    words = ["--size", "10", "--limit", "20", "--epochs", "10", "--seeds", "0,1", "--mild", "--out", str(tmp_path)]
    found = names["main"](words)
    assert set(found) == {"plain", "dml", "dml + metamixer"}
    assert all(len(values) == 2 and min(values) > 20 for values in found.values()), found
    assert len({value for values in found.values() for value in values}) == 6  # six runs, and none another's
    assert len(list(tmp_path.iterdir())) == 6
    assert "2 pairs" in capsys.readouterr().out


def test_the_researchers_table_is_what_one_gets_by_hand():
    """mean 2, sd 1; pairs +1, +2, +3: mean 2, sd 1, and t(0.975, 2) / sqrt(3) = 2.4841 on either side."""
    lines = example("researcher")["table"]({"plain": [1.0, 2.0, 3.0], "new": [2.0, 4.0, 6.0]})
    assert " ".join(lines[0].split()) == "plain 2.00 ± 1.00 %"
    assert " ".join(lines[1].split()) == "new 4.00 ± 2.00 % +2.00 over plain [-0.48, +4.48], 3 pairs"


def test_signals():
    before, after = example("signals_1d")["main"](["--epochs", "5", "--count", "640", "--device", "cpu"])
    assert max(before) < 0.35
    assert min(after) > 0.5


def test_no_class_of_signals_is_louder():
    values, labels = example("signals_1d")["signals"](400, seed=3, noise=0.0).tensors
    power = torch.stack([values[labels == label].square().mean() for label in range(4)])
    torch.testing.assert_close(power, torch.ones(4))


def test_volumes():
    before, after = example("volumes")["main"](["--epochs", "5", "--count", "320", "--device", "cpu"])
    assert max(before) < 0.4
    assert min(after) > 0.5


PINNED = "ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"


@pytest.mark.filterwarnings(
    PINNED,
    "ignore:.*isinstance.treespec, LeafSpec.:FutureWarning:lightning",
    "ignore:.*isinstance.treespec, LeafSpec.:DeprecationWarning:lightning",
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*exists and is not empty:UserWarning",
    "ignore:The number of training batches:UserWarning",
)
@pytest.mark.parametrize("kept", [True, False], ids=["checkpoints", "none"])
def test_lightning(kept, tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="the example is for Lightning")
    monkeypatch.chdir(tmp_path)
    words = [*SMALL, "--epochs", "3", *(["--out", "out"] if kept else [])]
    before, after = example("lightning_module")["main"](words)
    assert before < 0.2 < 0.3 < after
    assert bool(list(tmp_path.rglob("*.ckpt"))) == kept
    assert kept or not list(tmp_path.iterdir())  # nothing is left where nothing was asked for
    if kept:
        (log,) = tmp_path.rglob("metrics.csv")
        with log.open() as file:
            logged = set(csv.DictReader(file).fieldnames)
        assert {"train/task/0", "train/distill/1", "val/1", "val/ensemble"} <= logged


@pytest.mark.filterwarnings(PINNED)
def test_hf_trainer(tmp_path, capsys):
    pytest.importorskip("transformers", reason="the example is for Hugging Face transformers")
    pytest.importorskip("accelerate", reason="the Trainer of transformers needs accelerate")
    before, after = example("hf_trainer")["main"]([*SMALL, "--epochs", "3", "--out", str(tmp_path)])
    assert before < 0.2 < 0.3 < after
    assert after * 1000 == pytest.approx(round(after * 1000), abs=1e-3)  # of all 1,000 test images
    out = capsys.readouterr().out
    assert all(name in out for name in ("task_0", "distill_1", "eval_accuracy_ensemble"))


@pytest.mark.filterwarnings(PINNED)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate(precision, capsys):
    pytest.importorskip("accelerate", reason="the example is for Accelerate")
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # one precision in a process
    before, after = example("accelerate_loop")["main"]([*SMALL, "--epochs", "3", "--precision", precision])
    assert max(before) < 0.25
    assert min(after) > 0.3
    assert "distill" in capsys.readouterr().out
