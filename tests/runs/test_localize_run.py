"""Localization of whole runs: on scenes, and with boxes from a file."""

import pytest
from PIL import Image

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.data import load
from metamixer.runs.localize_run import localize_run, show_run
from metamixer.runs.run import train
from tests.toys import squares

TINY = ["data.val_share=0.4", "peers.0.name=resnet8", "peers.1.name=resnet8", "train.epochs=1", "train.batch_size=4",
        "optim.lr=0.02"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three kinds of clothing, 10 images each to train on and 12 to test on."""
    root = tmp_path_factory.mktemp("clothes")
    clothes = load("fashion-mini", val_share=0)
    for part, images, count in (("train", clothes.train, 10), ("test", clothes.test, 12)):
        for label in (0, 1, 7):
            place = root / part / clothes.classes[label].replace("/", " ")
            place.mkdir(parents=True)
            for number, row in enumerate((images.labels == label).nonzero().flatten()[:count].tolist()):
                Image.fromarray(images.images[row, 0].numpy()).save(place / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "run"
    train(Recipe.of({}, [*TINY, f"data.name=scenes:{folder}"]), place)
    return place


def test_a_run_on_scenes_is_measured(run):
    found = localize_run(run)
    assert [one.name for one in found.networks] == ["0 resnet8", "1 resnet8"]
    assert (found.images, found.held_out) == (36, 12)
    assert found.stages == ("stage3", "stage3")
    assert found.notes == ()
    assert all(0 <= one.pointing <= 1 and 0 < one.energy < 1 for one in found.networks)
    few = localize_run(run, limit=10)
    assert few.notes == ("10 of 36 images, evenly spaced", "10 of 12 images, evenly spaced")
    shown = show_run(run, count=5, thresholds=found)
    assert len(shown) == 5
    assert [one.label for one in show_run(run, count=5, thresholds=0.2)] == [one.label for one in shown]
    for one in shown:
        assert one.truth.shape == (1, 4)
        assert [each.name for each in one.networks] == ["0 resnet8", "1 resnet8"]


def test_what_cannot_be_measured_is_reported(run, tmp_path):
    with pytest.raises(RecipeError, match="limit 1"):
        localize_run(run, limit=1)
    with pytest.raises(RecipeError, match="is not a run"):
        localize_run(tmp_path)


def test_a_run_without_boxes(folder, tmp_path):
    train(Recipe.of({}, [*TINY, f"data.name={folder}"]), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"clothes\d+ has no boxes; .*data\.name=scenes:.*clothes\d+"):
        localize_run(tmp_path / "run")
    assert show_run(tmp_path / "run", count=2)[0].truth is None


def test_a_run_on_a_folder_with_a_file_of_boxes(tmp_path):
    root = tmp_path / "squares"
    lines: dict[str, list[str]] = {"test": [], "train": []}
    for part, seed in (("train", 0), ("test", 1)):
        images, boxes = squares(20, seed)
        for row in range(20):
            place = f"{'ab'[row % 2]}/{row}.png"
            (root / part / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[row, 0].numpy()).save(root / part / place)
            lines[part].append(",".join([place, *(f"{value:g}" for value in boxes[row].tolist())]))
    for part, rows in lines.items():
        (tmp_path / f"{part}.csv").write_text("\n".join(["file,x0,y0,x1,y1", *rows[: 19 if part == "test" else 20]]))
    train(Recipe.of({}, [*TINY, f"data.name={root}", "data.val_share=0.3"]), tmp_path / "run")
    few = localize_run(tmp_path / "run", tmp_path / "test.csv")
    assert (few.images, few.held_out) == (15, 4)
    assert few.notes == ("1 of 20 test images have no box in what networks see",
                         "every 5th test image with boxes chose the thresholds and was not measured")  # fmt: skip
    full = localize_run(tmp_path / "run", tmp_path / "test.csv", tmp_path / "train.csv")
    assert (full.images, full.held_out) == (19, 6)
    (root / "test_boxes.csv").write_text((tmp_path / "test.csv").read_text())
    assert localize_run(tmp_path / "run") == few
    assert show_run(tmp_path / "run", count=20)[0].truth is not None
    (root / "val_boxes.csv").write_text((tmp_path / "train.csv").read_text())
    assert localize_run(tmp_path / "run") == full
