"""A run knows which data it had, and is used with them wherever they are; with others it is not."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.data import DataError, FolderImages, load
from metamixer.export import export
from metamixer.runs.classifier import Classifier
from metamixer.runs.run import evaluate_run, open_run, read_recipe, train
from metamixer.studies.study_file import Study
from tests.command import metamixer


def photos(root, classes=("cat", "dog"), count=12, seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def recipe_for(data, epochs=1):
    return Recipe.of({"data": {"name": str(data), "val_share": 0.2}, "peers": ["resnet8"], "mixer": "none",
                      "train": {"epochs": epochs, "batch_size": 8, "accelerator": "cpu"}})  # fmt: skip


class Stop(Exception):
    pass


class StopAfter:
    """A callback that breaks off after the first epoch, whose checkpoint is written by then or not at all."""

    def on_start(self, start): ...

    def on_step(self, record):
        if record.step > 4:
            raise Stop

    def on_epoch(self, record): ...

    def on_end(self): ...


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run made in one working directory, with data of a relative name."""
    place = tmp_path_factory.mktemp("made")
    photos(place / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train(recipe_for("photos"), place / "run")
    return place


@pytest.fixture
def home(made, tmp_path):
    """A copy of it; the run looks for its data where they lay."""
    shutil.copytree(made / "photos", tmp_path / "photos")
    shutil.copytree(made / "run", tmp_path / "run")
    file = tmp_path / "run" / "data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": str(tmp_path / "photos")}))
    return tmp_path


def test_another_working_directory_has_other_images_of_that_name(home, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(home)
    here = evaluate_run(home / "run").as_dict()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    photos(elsewhere / "photos", ("ant", "bee"))
    monkeypatch.chdir(elsewhere)
    assert evaluate_run(home / "run").as_dict() == here
    result = train(read_recipe(home / "run"), home / "run", resume=True)
    assert result.last.as_dict()["peers"] == here["peers"]
    told = metamixer("evaluate", home / "run", "--quick", "--data", "photos", code=65).stderr
    assert "classes ant, bee, were cat, dog" in told
    assert len(told.splitlines()) == 1
    told = metamixer("train", "--resume", home / "run", "--data", "photos", "--quiet", code=65).stderr
    assert "classes ant, bee, were cat, dog" in told


def test_data_that_were_moved_are_found_again(home):
    before = evaluate_run(home / "run").as_dict()
    (home / "photos").rename(home / "pictures")
    for command in (["evaluate", home / "run", "--quick"], ["export", home / "run"]):
        told = metamixer(*command, code=65).stderr
        assert told.endswith(f"photos: no such folder; --data FOLDER says where the data of {home / 'run'} are now\n")
    moved = ["--data", home / "pictures"]
    assert evaluate_run(home / "run", data=str(home / "pictures")).as_dict() == before
    metamixer("evaluate", home / "run", "--quick", *moved)
    metamixer("export", home / "run", "--to", "safetensors", *moved)
    digest = read_recipe(home / "run").digest
    metamixer("train", "--resume", home / "run", "--quiet", *moved)
    assert read_recipe(home / "run").digest == digest
    assert evaluate_run(home / "run").as_dict() == before  # the new place is kept
    page = home / "page.html"
    (home / "pictures").rename(home / "images")
    metamixer("report", home / "run", "--out", page, "--data", home / "images")
    assert "No activation maps" not in page.read_text()
    assert "No mixing preview" not in page.read_text()


def test_export_needs_no_data_where_its_check_is_waived(home):
    shutil.rmtree(home / "photos")
    metamixer("export", home / "run", "--to", "safetensors", "--no-check", "--out", home / "best.safetensors")
    done = export(home / "run", 0, "safetensors", out=home / "peer.safetensors", check=False)
    assert done.split == "random"
    first, second = (Classifier.load(home / f"{name}.safetensors") for name in ("best", "peer"))
    assert first.classes == second.classes == ("cat", "dog")
    assert (first.size, first.mean, first.std) == (second.size, second.mean, second.std)
    (home / "run" / "data.json").unlink()
    assert export(home / "run", "best", "safetensors", out=home / "old.safetensors", check=False).split == "random"
    with pytest.raises(RecipeError, match="--no-check does not read"):
        export(home / "run", "best", "onnx", quantize="int8", check=False)


@pytest.mark.parametrize("change", ["added", "resized", "renamed"])
def test_a_change_of_the_data_is_seen(change, home):
    cat = home / "photos" / "cat"
    if change == "added":
        shutil.copy(cat / "0.png", cat / "new.png")
    elif change == "resized":
        for file in cat.iterdir():
            Image.new("RGB", (12, 12)).save(file)
    else:
        for file in sorted(cat.iterdir()):
            file.rename(cat / f"a{file.name}")
    with pytest.raises(DataError, match="train: "):
        train(read_recipe(home / "run"), home / "run", resume=True)
    if change == "resized":
        with pytest.raises(DataError, match="test: other images"):
            evaluate_run(home / "run")
        assert evaluate_run(home / "run", check=False).images > 0
        metamixer("evaluate", home / "run", "--quick", "--no-check")


def test_a_photograph_added_between_stop_and_resume(tmp_path):
    photos(tmp_path / "photos")
    recipe = recipe_for(tmp_path / "photos", epochs=3)
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", callbacks=[StopAfter()])
    shutil.copy(tmp_path / "photos" / "cat" / "0.png", tmp_path / "photos" / "cat" / "zzz.png")
    with pytest.raises(DataError, match=r"val: 5 images, were 4"):
        train(recipe, tmp_path / "run", resume=True)
    (tmp_path / "photos" / "cat" / "zzz.png").unlink()
    (tmp_path / "photos").rename(tmp_path / "moved")
    train(recipe_for(tmp_path / "moved", epochs=3), tmp_path / "run", resume=True)
    assert read_recipe(tmp_path / "run").data == recipe.data


def test_a_run_of_an_older_version_resumes_with_a_note(home, monkeypatch):
    """Its checkpoints carry the checksum that had the place of the data in it."""
    recipe = read_recipe(home / "run")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"name": str(home / "photos")})})
    assert recipe.placed_digest != recipe.digest
    (home / "run" / "recipe.yaml").write_text(recipe.as_yaml())
    (home / "run" / "data.json").unlink()
    for file in (home / "run" / "checkpoints").glob("step-*/manifest.json"):
        file.write_text(file.read_text().replace(recipe.digest, recipe.placed_digest))
    with pytest.warns(UserWarning, match=r"has no data.json"):
        open_run(home / "run")
    with pytest.warns(UserWarning, match=r"has no data.json"):
        train(recipe, home / "run", resume=True)
    train(recipe, home / "run", resume=True)
    open_run(home / "run")


def test_a_place_is_no_part_of_the_checksum_but_its_name_is():
    digest = recipe_for("photos").digest
    assert {recipe_for(name).digest for name in ("/a/photos", "b/photos/", "./photos")} == {digest}
    assert recipe_for("/a/cats").digest != digest
    assert (
        Recipe.of({"data": {"name": "cifar10", "root": "/x"}}).digest == Recipe.of({"data": {"name": "cifar10"}}).digest
    )
    names = ["hf:me/photos", "hf:you/photos", "photos", "scenes:photos"]
    assert len({recipe_for(name).digest for name in names}) == len(names)


def test_rows_of_a_study_that_differ_in_the_place_alone_are_two():
    data = {name: {"name": f"/{name}/few"} for name in ("a", "b")}
    study = Study.of({"data": data, "seeds": [0], "recipe": {"peers": ["resnet8"]}})
    assert len({cell.digest for cell in study.runs}) == len({cell.name for cell in study.runs}) == 2


def test_a_damaged_record_is_named(home):
    (home / "run" / "data.json").write_text("{")
    with pytest.raises(DataError, match=r"data.json is damaged"):
        evaluate_run(home / "run")


def test_a_run_that_began_with_crops_of_files_keeps_them(tmp_path, monkeypatch):
    """Versions before cropped what did not fit into memory, and only that; their records do not say so."""
    monkeypatch.setattr("metamixer.runs.data_record.load", partial(load, cache_limit_bytes=0))
    recipe, seen = recipe_for(photos(tmp_path / "photos"), epochs=4), []
    usual = FolderImages.crops
    monkeypatch.setattr(FolderImages, "crops", lambda *args: seen.append(args) or usual(*args))
    for name in ("new", "old"):
        with pytest.raises(Stop):
            train(recipe, tmp_path / name, callbacks=[StopAfter()])
        assert not seen
    record = json.loads((tmp_path / "old/data.json").read_text())
    assert record.pop("disk_crops") is False
    (tmp_path / "old/data.json").write_text(json.dumps(record))
    train(recipe, tmp_path / "new", resume=True)
    assert not seen
    train(recipe, tmp_path / "old", resume=True)
    assert seen
    assert json.loads((tmp_path / "old/data.json").read_text())["disk_crops"] is True


def damage(file):
    """Pixels that cannot be decoded behind a good header; the file's size stays as it is."""
    content = bytearray(file.read_bytes())
    content[60:-20] = bytes(len(content) - 80)
    file.write_bytes(content)


@pytest.mark.parametrize("splits", [("train", "test"), ("",)], ids=["splits", "no splits"])
def test_files_that_were_skipped_are_skipped_again_without_decoding_the_others(tmp_path, splits):
    for part in splits:
        photos(tmp_path / "data" / part, count=20)
    first = tmp_path / "data" / splits[0]
    damage(first / "cat" / "0.png")
    recipe = recipe_for(tmp_path / "data")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"on_error": "skip"})})
    trained = train(recipe, tmp_path / "run")
    before = evaluate_run(tmp_path / "run")
    known = json.loads((tmp_path / "run" / "data.json").read_text())
    assert known["skipped"] == [str(first / "cat" / "0.png").removeprefix(f"{tmp_path / 'data'}/")]
    assert trained

    opened = open_run(tmp_path / "run", splits=("test",))
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = open_run(tmp_path / "run", splits=("test",), data=str(tmp_path / "moved"))
    for run in (opened, moved):
        assert isinstance(run.data.train, FolderImages)
        assert isinstance(run.data.val, FolderImages)
        assert not isinstance(run.data.test, FolderImages)
        assert len(run.data.train) == known["splits"]["train"]["images"]
    damage(moved.data.train.files[moved.data.train.rows[-1]])  # is not looked at
    assert evaluate_run(tmp_path / "run", data=str(tmp_path / "moved")) == before
