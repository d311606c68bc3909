"""Each command reads the images that it needs and no others, and whatever takes long moves."""

import shutil
from collections import Counter
from dataclasses import replace

import pytest

from metamixer.cli import training_progress, waiting
from metamixer.data.files import folder_images, load_files
from tests.command import metamixer
from tests.data.conftest import class_folders, save  # noqa: F401


@pytest.fixture
def photos(class_folders):  # noqa: F811
    class_folders(part="train", count=10, size=(32, 32))
    class_folders(part="val", count=3, size=(32, 32), first=100)
    return class_folders(part="test", count=4, size=(32, 32), first=200)


@pytest.fixture
def run(photos, tmp_path):
    metamixer("train", "--data", photos, "--peers", "resnet8,resnet8", "--epochs", 1, "--batch-size", 10,
              "--out", tmp_path / "run")  # fmt: skip
    return tmp_path / "run"


@pytest.fixture
def opened(monkeypatch):
    """How often an image of each split was decoded."""
    counts, usual = Counter(), folder_images.read_image

    def read(path, *args, **options):
        counts[path.parent.parent.name] += 1
        return usual(path, *args, **options)

    monkeypatch.setattr(folder_images, "read_image", read)
    return counts


def test_what_each_command_decodes(run, photos, opened, tmp_path):
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    for name in ("model.safetensors", "report.json"):
        (unfinished / name).unlink()
    page = ("--out", tmp_path / "page.html")
    preview, checked = 6 + 6, 12  # with companions; batches of 1, 4 and 7
    for words, wanted in [
        (("evaluate", run), {"val": 6, "test": 8}),
        (("evaluate", run, "--quick"), {"test": 8}),
        (("evaluate", run, "--split", "val"), {"val": 6}),
        (("evaluate", unfinished, "--quick", "--split", "val"), {"val": 6}),
        (("report", run, *page), {"train": preview, "test": 8}),
        (("report", unfinished, *page), {"train": preview, "test": 8}),
        (("report", run, "--no-pictures", *page), {}),
        (("export", run), {"test": checked}),
        (("export", unfinished, "--peer", 0), {"test": checked}),
        (("export", run, "--no-check"), {}),
        (("preview", "--data", photos, "--images", 6, "--out", tmp_path / "a.png"), {"train": preview}),
        (("predict", run, photos / "test"), {}),  # by the network's own reader
    ]:
        opened.clear()
        metamixer(*words)
        assert opened == wanted, words


def test_every_long_loop_of_a_command_is_in_its_log(photos, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(waiting, "_PATIENCE", -1.0)
    for module in (waiting, training_progress):
        monkeypatch.setattr(module, "BETWEEN_LINES", 0.0)
    usual = load_files.read
    monkeypatch.setattr(  # not all of it fits into memory
        "metamixer.data.sources.image_folder.read",
        lambda parts, classes, how: usual(parts, classes, replace(how, cache_limit_bytes=1)),
    )
    train = ("train", "--data", photos, "--peers", "resnet8,resnet8", "--batch-size", 10, "--epochs", 2)
    loops_of_training = ("reading headers: 0 of 20", "measuring mean and deviation: 0 of 1", "evaluating: 0 of 1")
    for words, loops in [
        ((*train, "--loss", "kdcl", "--out", run), (*loops_of_training, "weighing the peers: 0 of 1", "step 3/4")),
        (("evaluate", run, "--robustness", "all"), ("corruptions: 0 of 600", "attacks: 0 of 96")),
        (("evaluate", run, "--quick"), ("evaluating: 0 of 1",)),
        (("predict", run, photos, "--out", tmp_path / "a.csv"), ("classifying: 0 of 34",)),
        (("check", photos), ("decoding images: 0 of 34",)),
    ]:
        with_progress = metamixer(*words).output
        for loop in loops:
            assert loop in with_progress, (words, with_progress)
    assert "evaluating" not in metamixer(*train, "--quiet", "--out", tmp_path / "quiet").output


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--data", "photos", "--out", "photos/train/run"),
        ("export", "run", "--out", "photos/train/export"),
        ("export", "run", "--out", "photos/model.onnx"),
        ("report", "run", "--out", "page.html", "--static", "photos/train/plots"),
        ("preview", "--data", "photos", "--out", "photos/train/cat/a.png"),
        ("study", "study.yaml", "--out", "photos/study"),
    ],
    ids=lambda words: words[0],
)
def test_nothing_is_written_into_the_data(words, run, photos, tmp_path, monkeypatch):
    photos.rename(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "run" / "data.json"
    record.write_text(record.read_text().replace(str(photos), str(tmp_path / "photos")))
    (tmp_path / "study.yaml").write_text("recipe: {data: {name: photos}, peers: [resnet8, resnet8]}\nmethods: [dml]\n")
    before = sorted(tmp_path.rglob("photos/**/*"))
    said = metamixer(*words, code=2).stderr
    assert " is inside of the data, " in said
    assert " a folder outside is accepted: --out " in said
    assert len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("photos/**/*")) == before
