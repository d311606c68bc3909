"""``metamixer evaluate``, driven as a user does."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.evaluation.robustness.corruptions import CORRUPTIONS
from metamixer.runs.localize_run import localize_run
from tests.command import metamixer

TINY = ["data.train_limit=20", "--peers", "resnet8,resnet8", "--epochs", "2", "--batch-size", "50", "--device", "cpu"]
TINY += ["--image-size", "16", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    metamixer("train", *TINY, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(run):
    """A copy of the run, evaluated with all there is on few images."""
    folder = run.parent / "evaluated"
    shutil.copytree(run, folder)
    result = metamixer("evaluate", folder, "--robustness", "all", "--limit", 20, "--device", "cpu")
    return folder, result, json.loads((folder / "evaluation.json").read_text())


def test_what_is_written_is_what_train_said(evaluated):
    folder, _, found = evaluated
    report = json.loads((folder / "report.json").read_text())
    trained = [*report["last_epoch"]["peers"], report["last_epoch"]["ensemble"], report["deployed"]]
    for here, there in zip(found["networks"], trained, strict=True):
        assert (here["accuracy"], here["top5"]) == (there["accuracy"], there["top5"])
        assert here["nll"] == pytest.approx(there["nll"], rel=1e-6)
    assert [(each["name"], each["kind"]) for each in found["networks"]] == [
        ("0 resnet8", "peer"), ("1 resnet8", "peer"), ("ensemble", "ensemble"), ("deployed", "deployed"),
    ]  # fmt: skip
    assert (found["split"], found["checkpoint"], found["images"]) == ("test", "last", 1000)
    assert len(found["classes"]) == 10
    assert found["localization"] is None
    assert all(each["temperature"] > 0 for each in found["networks"])


def test_robustness_is_on_few_images_and_of_every_network(evaluated):
    _, _, found = evaluated
    probed = found["robustness"]
    assert probed["images"] == 20
    names = [each["name"] for each in found["networks"]]
    assert list(probed["corruptions"]["kinds"]) == list(CORRUPTIONS)
    for shares in probed["corruptions"]["kinds"].values():
        assert list(shares) == names
        assert all(len(each) == 5 and all(0 <= share <= 1 for share in each) for each in shares.values())
    assert list(probed["attacks"]) == ["fgsm", "pgd-10", "pgd-20"]
    for attack in probed["attacks"].values():
        assert attack["eps"] == pytest.approx(8 / 255)
        assert list(attack["accuracy"]) == names
        assert all(attack["accuracy"][name] <= probed["clean"][name] for name in names)


def test_the_tables_show_what_is_written(evaluated):
    folder, result, found = evaluated
    for each in found["networks"]:
        row = next(line for line in result.stdout.splitlines() if line.strip().startswith(each["name"]))
        assert f"{100 * each['accuracy']:.1f} %" in row
        assert f"{each['brier']:.3f}" in row
        assert f"{100 * each['ece']:.1f}" in row
        assert f"{100 * each['calibrated']['ece']:.1f}" in row
        assert f"{each['temperature']:.3f}" in row
    assert f"{found['peers']['pairwise_kl'][0][1]:.3f}" in result.stdout
    assert "not CIFAR-10-C" in result.stdout
    assert "jpeg compression" in result.stdout
    assert "pgd-20, ε 8/255" in result.stdout
    assert f"written: {folder / 'evaluation.json'}" in result.stdout


def test_json_is_the_file_and_the_last_call_is_what_it_says(run):
    found = metamixer("evaluate", run, "--json", "--split", "val", "--checkpoint", "best", "--device", "cpu")
    read = json.loads(found.stdout)
    assert read == json.loads((run / "evaluation.json").read_text())
    assert (read["split"], read["checkpoint"], read["images"], read["robustness"]) == ("val", "best", 600, None)
    best = json.loads((run / "report.json").read_text())["best"]
    assert read["networks"][best["peer"]]["accuracy"] == best["validation_accuracy"]
    assert read["networks"][3]["accuracy"] == best["validation_accuracy"]  # the deployed one
    assert not list(run.glob("*.tmp"))
    shown = metamixer("evaluate", run, "--split", "val", "--device", "cpu").stdout
    assert "fits the validation images best, which are these images" in shown


def test_quick_writes_nothing(run):
    (run / "evaluation.json").unlink(missing_ok=True)
    found = json.loads(metamixer("evaluate", run, "--quick", "--json").stdout)
    trained = json.loads((run / "report.json").read_text())["last_epoch"]
    assert found["ensemble"]["accuracy"] == trained["ensemble"]["accuracy"]
    assert "All peers predict the same class" in metamixer("evaluate", run, "--quick").stdout
    assert not (run / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--robustness", "rain"], 2, "--robustness rain: expected all, or some of corruptions, fgsm, pgd-10, pgd-20"),
        (["--limit", "0"], 2, "limit 0: expected at least 1 image"),
        (["--quick", "--robustness", "all"], 2, "--quick computes accuracy and likelihood only"),
        (["--cifar-c", "nowhere"], 65, "nowhere: no such folder"),
        (["--cifar-c", ".", "--split", "val"], 2, "expected split test"),
        (["--cifar-c", "."], 65, "has no gaussian_noise.npy"),
    ],
)
def test_a_fault_is_one_line(run, words, code, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = metamixer("evaluate", run, *words, "--device", "cpu", code=code)
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_images_that_are_too_small_are_refused_before_the_work(run, tmp_path):
    metamixer("train", *TINY, "--image-size", 12, "--epochs", 1, "--out", tmp_path / "run")
    result = metamixer("evaluate", tmp_path / "run", "--robustness", "corruptions", "--device", "cpu", code=65)
    assert "images of 12x12 are too small for corruptions; expected at least 16 pixels" in result.stderr


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "run"
    words = ["data.train_limit=20", "--image-size", "36", "--epochs", "1", "--batch-size", "50", "--device", "cpu"]
    metamixer("train", "--data", "scenes:fashion-mini", "--peers", "resnet8,resnet14", *words, "--out", folder)
    return folder


def test_boxes_are_found_and_written(scenes):
    shown = metamixer("evaluate", scenes, "--boxes", "auto", "--limit", 60).output
    found = json.loads((scenes / "evaluation.json").read_text())["localization"]
    assert found["images"] == 60
    wanted = localize_run(scenes, limit=60).as_dict()
    assert found == json.loads(json.dumps(wanted))
    assert "centre box (baseline)" in shown
    for network in found["networks"]:
        row = next(line for line in shown.splitlines() if network["name"] in line and "MaxBox" not in line)
        assert row
        assert f"{100 * network['pointing']:.1f}" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--held-out-boxes", "x.csv"], "--boxes FILE.csv"),
        (["--boxes", "auto", "--split", "val"], "--split test"),
        (["--boxes", "auto", "--quick"], "--quick computes accuracy and likelihood only"),
        (["--boxes", "nowhere.csv"], "nowhere.csv"),
    ],
    ids=str,
)
def test_boxes_that_do_not_fit(scenes, words, message):
    result = CliRunner().invoke(app, ["evaluate", str(scenes), *words])
    assert result.exit_code in (2, 65)
    assert message in result.output


def test_data_without_boxes_are_reported(run):
    result = CliRunner().invoke(app, ["evaluate", str(run), "--boxes", "auto"])
    assert result.exit_code == 2
    assert "scenes:fashion-mini" in result.output
