"""The command line, driven as a user does."""

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import metamixer as metamixer_package
from metamixer.cli.recipe_args import Sugar, folder_name, recipe_of, slug
from metamixer.cli.training_progress import Progress
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.data import DataError
from metamixer.runs.claim import new_folder
from tests.command import metamixer

TINY = ["data.train_limit=20", "--peers", "resnet8,resnet8", "--epochs", "2", "--batch-size", "50", "--device", "cpu"]
TINY += ["--image-size", "12"]
NASTY = ["$x$", "[red] [bold]", "<b>&", "=cmd()", "née 猫", "new\nline", "esc\x1b[31m"]


def photos(root, classes=("cat", "dog"), count=8, size=(32, 32), suffix="jpg"):
    """A folder of one shade and much noise for each class."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 100, (*size, 3)) + 150 * label // len(classes)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.{suffix}")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on the bundled data with its baseline, and what was printed."""
    folder = tmp_path_factory.mktemp("mini") / "run"
    return folder, metamixer("train", *TINY, "--mixer", "metamixer", "--out", folder, "--baseline")


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A run of two timm networks on JPEG files whose classes have difficult names."""
    root = tmp_path_factory.mktemp("nasty")
    folder = photos(root / "photos $1 [x]", NASTY)
    (folder / NASTY[0] / "broken.jpg").write_bytes(b"no image")
    result = metamixer(
        "train", "--data", folder, "--peers", "timm:test_resnet,timm:test_efficientnet", "--epochs", 1,
        "--batch-size", 16, "data.on_error=skip", "--out", root / "run [/]", "--device", "cpu",
    )  # fmt: skip
    return folder, root / "run [/]", result


def test_training_ends_with_a_table_and_what_was_written(run):
    folder, result = run
    report = json.loads((folder / "report.json").read_text())
    for score in (*report["last_epoch"]["peers"], report["last_epoch"]["ensemble"], report["deployed"]):
        assert f"{100 * score['accuracy']:.1f} %" in result.stdout
        assert f"{score['nll']:.3f}" in result.stdout
    base = json.loads((folder / "baseline" / "report.json").read_text())
    gain = 100 * (report["last_epoch"]["ensemble"]["accuracy"] - base["last_epoch"]["ensemble"]["accuracy"])
    assert f"{gain:+.1f}" in result.stdout
    assert "not used for model selection" in result.stdout
    assert "chosen by its validation accuracy" in result.stdout
    assert f"metamixer predict {folder}" in result.stdout
    for name in ("model.safetensors", "report.json", "metrics.csv"):
        assert str(folder / name) in result.stdout
        assert (folder / name).is_file()
    assert "600 of 6000 training images held out for validation" in result.stdout
    assert "warning: a short training for so much mixing: each of the 200 images is seen 2 times" in result.stderr
    assert len([line for line in result.stdout.splitlines() if "epoch " in line and "images/s" in line]) == 4
    plain = Recipe.read(folder / "baseline" / "recipe.yaml")
    assert (plain.loss.name, plain.mixer.name) == ("independent", "none")
    assert plain.train == Recipe.read(folder / "recipe.yaml").train


def test_evaluate_says_what_train_said(run):
    folder, _ = run
    found = json.loads(metamixer("evaluate", folder, "--json", "--device", "cpu").stdout)
    report = json.loads((folder / "report.json").read_text())
    trained = (*report["last_epoch"]["peers"], report["last_epoch"]["ensemble"], report["deployed"])
    for here, there in zip(found["networks"][:-1], trained[:-1], strict=True):
        assert (here["name"], here["accuracy"], here["top5"]) == (there["name"], there["accuracy"], there["top5"])
        assert here["nll"] == pytest.approx(there["nll"], rel=1e-6)
    table = metamixer("evaluate", folder, "--split", "val", "--checkpoint", "best").stdout
    best = json.loads((folder / "report.json").read_text())["best"]["validation_accuracy"]
    assert "600 validation images" in table
    assert f"{100 * best:.1f} %" in table


def test_resuming_a_finished_run_prints_its_table(run):
    folder, result = run
    again = metamixer("train", "--resume", folder)
    tables = [each.stdout.partition("after the last epoch")[2].partition("written:")[0] for each in (result, again)]
    assert "ensemble" in tables[0]
    assert tables[0] == tables[1]
    auto = metamixer("train", *TINY, "--mixer", "metamixer", "--out", folder, "--resume", "auto", "--quiet").stdout
    assert "epoch 1/2" not in auto
    assert "held out" not in auto


def test_a_run_is_not_changed_nor_overwritten(run):
    folder, _ = run
    before = (folder / "recipe.yaml").read_text()
    changed = metamixer("train", "--resume", folder, "optim.lr=0.01", code=2).stderr
    assert "another recipe" in changed
    assert "optim.lr: 0.05, here 0.01" in changed
    assert (
        f"--resume {folder} resumes a run"
        in metamixer("train", *TINY, "--mixer", "metamixer", "--out", folder, code=2).stderr
    )
    assert (folder / "recipe.yaml").read_text() == before


def test_timm_networks_learn_from_a_folder_of_jpeg_files(nasty):
    _, run, result = nasty
    assert "0 timm:test_resnet" in result.stdout
    assert "1 timm:test_efficientnet" in result.stdout
    assert "$x$, <b>&, =cmd(), [red] [bold], esc\\x1b[31m and 2 more" in result.stdout
    assert "broken.jpg: not an image" in result.stderr
    assert "\x1b" not in result.output
    with safe_open(run / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["classes"]) == sorted(NASTY)


def test_predictions_as_csv(nasty, tmp_path):
    folder, run, _ = nasty
    (tmp_path / "in").mkdir()
    sample = (folder / NASTY[1] / "0.jpg").read_bytes()
    for name in ("=1+1.jpg", "[red].jpg", "$y$.jpg", "new\nline.jpg"):
        (tmp_path / "in" / name).write_bytes(sample)
    out = tmp_path / "found.csv"
    result = metamixer("predict", run, tmp_path / "in", folder / NASTY[0] / "broken.jpg", "nowhere.jpg", "--out", out)
    assert "2 of 6 files could not be read" in result.stderr
    assert "nowhere.jpg: no such file" in result.stderr
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    unread = [row for row in rows if not row["class"]]
    assert [Path(row["file"]).name for row in unread] == ["broken.jpg", "nowhere.jpg"]
    assert not any(value for row in unread for key, value in row.items() if key != "file")
    rows = [row for row in rows if row["class"]]
    assert {Path(row["file"]).name for row in rows} == {"=1+1.jpg", "[red].jpg", "$y$.jpg", "new\nline.jpg"}
    assert list(rows[0])[3:] == [f"'{name}" if name.startswith("=") else name for name in sorted(NASTY)]
    for row in rows:
        shares = {name: float(row[name]) for name in list(row)[3:]}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert max(shares, key=shares.get) == row["class"]
        assert float(row["probability"]) == max(shares.values())


def test_predictions_as_json_and_on_stdout(nasty, tmp_path, monkeypatch):
    folder, run, _ = nasty
    monkeypatch.chdir(folder / "=cmd()")
    out = tmp_path / "new" / "found.json"
    metamixer("predict", run / "model.safetensors", "*.jpg", "0.jpg", "--out", out, "--top", 2)
    rows = json.loads(out.read_text())
    assert [row["file"] for row in rows] == [f"{number}.jpg" for number in range(8)]
    assert all(len(row["probabilities"]) == 2 and row["class"] in NASTY for row in rows)
    Image.new("RGB", (9, 9)).save("=evil.png")
    lines = list(csv.reader(metamixer("predict", run, "=evil.png", "--top", 2).stdout.splitlines()))
    assert lines[0] == ["file", "class", "probability", "class_2", "probability_2"]
    assert lines[1][0] == "'=evil.png"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "optim.lrr=1"], 2, "error: optim.lrr: no such option; did you mean 'lr'?"),
        (["train", "--epoch", "1"], 2, "--epochs"),
        (["train", "optim.lr"], 2, "error: optim.lr: no such recipe"),
        (["train", "optim.lr=1", "x"], 2, "error: 'x' is not an override; expected key=value, such as optim.lr=0.05"),
        (["train", "optim.lr=-1"], 2, "error: optim.lr: input should be greater than 0, or 'auto', not -1"),
        (["train", "--precision", "8"], 2, "error: train.precision: input should be '32', 'bf16' or '16'"),
        (["train", "--loss", "dmll"], 2, "error: loss: 'dmll' is not a loss; dml"),
        (["train", "--mixer", "cutmixx"], 2, "error: mixer: 'cutmixx' is not a mixer; cutmix"),
        (["train", "--peers", "resnet8,resnet9"], 2, "error: peers.1: 'resnet9' is not a network; resnet8"),
        (["train", "--peers", "resnet8", "mixer.stages=[0,9]"], 2, "error: mixer.stages: 9 is too deep"),
        (["train", "--data", "nowhere/"], 65, "error: nowhere: no such folder"),
        (["train", "--data", "one"], 65, "error: one: one class, 'cat', is nothing to learn"),
        (["train", "--data", "cifar1"], 65, "did you mean 'cifar10'"),
        (["train", "one"], 2, "--data one trains on its images"),
        (["train", "--image-size", "4", "--peers", "vgg8"], 65, "error: peer 0 vgg8 cannot take images of 1×4×4"),
        (["train", "--out", "one"], 2, "error: one is not empty"),
        (["train", "--out", "file"], 2, "error: file is a file"),
        (["train", "--resume", "one"], 2, "error: one is not a run"),
        (["train", "--resume", "auto"], 2, "--resume auto needs --out"),
        (["train", "--loss", "independent", "--mixer", "none", "--baseline"], 2, "itself is the baseline"),
        (["train", "--data", "broken"], 65, "data.on_error=skip:\n  broken/cat/x.jpg: not an image"),
        (["evaluate", "one"], 2, "error: one is not a run"),
        (["predict", "nowhere", "one"], 65, "error: nowhere: no such file"),
        (["predict", "one", "one"], 65, "error: one has no model.safetensors"),
        (["predict", "file", "one"], 65, "error: file cannot be read"),
        (["predict", "file", "one", "--out", "x.txt"], 2, "accepted are .csv and .json"),
        (["preview", "--out", "x.jpg"], 2, "error: --out x.jpg: the picture is a .png"),
        (["list", "nets"], 2, "error: 'nets' is not a list; accepted are networks"),
        (["check", "nowhere"], 65, "error: nowhere: no such folder"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_a_fault_is_one_line_and_leaves_nothing(words, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "one", ["cat"], count=2)
    photos(tmp_path / "broken", count=2)
    (tmp_path / "broken" / "cat" / "x.jpg").write_bytes(b"text")
    (tmp_path / "file").write_bytes(b"x" * 100)
    result = metamixer(*words, code=code)
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.glob("runs/*"))


def test_predict_stops_where_asked(nasty):
    folder, run, _ = nasty
    result = metamixer("predict", run, folder, "--on-error", "stop", code=65)
    assert "broken.jpg: not an image" in result.stderr
    assert not result.stdout
    metamixer("predict", run, folder / NASTY[0] / "broken.jpg", code=65)
    assert "no file matches" in metamixer("predict", run, "*.nothing", code=65).stderr
    assert "knows 7 classes" in metamixer("predict", run, folder, "--top", 8, code=2).stderr


def test_check_reports_what_cannot_be_read(nasty):
    folder, _, _ = nasty
    result = metamixer("check", folder, code=65)
    assert "not-an-image" in result.stdout
    assert "esc\\x1b[31m" in result.stdout
    assert "new\\nline" in result.stdout
    assert "56" in result.stdout
    (folder / NASTY[0] / "broken.jpg").rename(folder / "aside.txt")
    metamixer("check", folder)
    (folder / "aside.txt").rename(folder / NASTY[0] / "broken.jpg")


def test_list_shows_names_and_what_they_are():
    everything = metamixer("list").stdout
    for part in ("networks", "wrn_16_2", "110 layers", "timm:NAME", "metamixer", "dml", "arXiv 1706.00384", "svhn"):
        assert part in everything
    assert "dml" not in metamixer("list", "mixers").stdout


def test_options_are_changes_that_come_first():
    sugar = Sugar(data="no", peers="resnet8, vgg8", mixer="cutmix", epochs=3, seed=5, precision="32", image_size=16)
    recipe = recipe_of(["train.epochs=4", "peers.1.frozen=true"], sugar)
    assert recipe.data.name == "no"
    assert [(peer.name, peer.frozen) for peer in recipe.peers] == [("resnet8", False), ("vgg8", True)]
    assert (recipe.mixer.name, recipe.train.epochs, recipe.train.seed) == ("cutmix", 4, 5)
    for name in ("a: b", "[x]", "12", "né 猫 \x1b\n'\"", "\udcff"):
        assert recipe_of([], Sugar(data=name)).data.name == name


def test_a_recipe_file_and_changes(tmp_path):
    file = tmp_path / "a=b.yaml"
    file.write_text("peers: [resnet8, resnet14]\ntrain: {epochs: 7}\n")
    recipe = recipe_of([str(file), "train.batch_size=8"], Sugar(epochs=9))
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.peers[1].name) == (9, 8, "resnet14")
    with pytest.raises(RecipeError, match="--resume takes the recipe"):
        recipe_of([str(file)], Sugar(), tmp_path)


def test_run_folders_stay_where_they_belong(tmp_path):
    for name in ("../../x", "/etc/passwd", "..", "Ü [b]/$(rm)", "a" * 500, *NASTY):
        folder = new_folder(tmp_path, folder_name(recipe_of([], Sugar(data=name))))
        assert folder.parent == tmp_path
        assert set(folder.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        assert len(folder.name) < 200
        assert not folder.name.startswith(".")
    name = folder_name(Recipe.of({}))
    assert name == "fashion-mini-resnet20-resnet20-dml-metamixer-seed0"
    assert [new_folder(tmp_path, name).name for _ in range(3)] == [name, f"{name}-2", f"{name}-3"]
    assert slug("..", "/") == "run"


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(28, "No space left on device"), 74), (DataError("x"), 65), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(error, code, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("metamixer.cli.train_recipe.follow", fail)
    metamixer("train", *TINY, "--out", tmp_path / "run", code=code)
    assert not (tmp_path / "run").exists()


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("metamixer.cli.train_recipe.follow", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        metamixer("train", *TINY, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--help"], "preview"),
        (["train", "--help"], "Output folder of the run."),
        (["--version"], "metamixer 0."),
        (["list"], "arXiv 1706.00384"),
        (["list", "data"], "svhn"),
    ],
    ids=" ".join,
)
def test_help_version_and_list_do_not_wait_for_torch(words, text):
    code = (
        "import sys; sys.argv[0] = 'metamixer'\n"
        "import metamixer.cli.app\n"
        "try:\n    metamixer.cli.app.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'timm'} & set(sys.modules)\n"
        "assert '--help' not in sys.argv or 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    assert text in done.stdout


def test_the_package_alone_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import metamixer\n"
        "print(*sorted({name for name in set(sys.modules) - before if name.startswith('metamixer')}))\n"
        "assert not {'torch', 'numpy', 'lightning_fabric', 'timm', 'rich', 'typer', 'pydantic'} & set(sys.modules)\n"
        "assert len(set(sys.modules) - before) < 60"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    assert done.stdout.split() == [
        "metamixer", "metamixer.core", "metamixer.core.registry", "metamixer.core.torchvision_compat",
        "metamixer.losses", "metamixer.mixers",
    ]  # fmt: skip


def test_public_names_are_there_although_they_are_imported_late():
    for name in metamixer_package.__all__:
        assert getattr(metamixer_package, name) is not None
    assert set(metamixer_package.__all__) <= set(dir(metamixer_package))
    importlib.import_module("metamixer.evaluation.evaluate")
    assert callable(metamixer_package.evaluate)
    with pytest.raises(AttributeError, match="no attribute 'Cohorts'"):
        _ = metamixer_package.Cohorts


def test_a_stopped_baseline_resumes(tmp_path, monkeypatch):
    whole = Progress.on_epoch

    def stop(self, record):
        whole(self, record)
        os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_epoch", stop)
        result = metamixer("train", *TINY, "--out", folder, "--baseline", code=143)
    assert f"stopped by SIGTERM after step 5; resume with: metamixer train --resume {folder}\n" in result.stderr
    result = metamixer("train", "--resume", folder)
    assert "baseline: resuming from step 5/8" in result.stdout
    assert "run: epoch 2/2" in result.stdout
    assert "gain" in result.stdout
    assert "short training" not in result.stderr


def test_sigterm_saves_and_says_how_to_resume(tmp_path):
    folder = tmp_path / "a run"
    command = [sys.executable, "-c", "from metamixer.cli.app import main; main()", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [*command, *TINY, "--peers", "resnet8", "--epochs", "500", "--mixer", "none", "--out", folder],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    until = time.monotonic() + 120
    while time.monotonic() < until and child.poll() is None:
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size:
            break
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 143, errors
    assert "stopped by SIGTERM after step " in errors
    assert f"resume with: metamixer train --resume '{folder}'" in errors
    assert list((folder / "checkpoints").glob("step-*"))
