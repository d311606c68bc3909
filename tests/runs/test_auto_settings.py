"""Numbers that a run finds for itself: kept with it, and used when it resumes."""

import json

import pytest
import safetensors.torch
import torch

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.eval_mode import evaluating
from metamixer.runs import auto_settings
from metamixer.runs.run import evaluate_run, load_data, read_recipe, train, train_loader
from metamixer.training.out_of_memory import kept_bytes

TINY = ["data.train_limit=12", "data.val_share=0.1", "peers=[resnet8]", "mixer=none", "train.epochs=3",
        "train.accelerator=cpu"]  # fmt: skip
AUTO = ["optim.lr=auto", "train.batch_size=auto"]


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_start(self, start):
        self.notes = start.notes

    def on_step(self, record):
        if record.step == self.step:
            raise Stop

    def on_epoch(self, record): ...

    def on_end(self): ...


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / "run"
    train(Recipe.of({}, [*TINY, *AUTO]), folder)
    return folder


def test_what_was_found_is_kept_and_drawn(whole):
    known = json.loads((whole / "auto.json").read_text())
    assert known["batch_size"] == 4  # a twentieth of 120 images
    assert 1e-4 < known["lr"] < 10
    assert len(known["range_test"]["rates"]) == len(known["range_test"]["losses"]) == 100
    assert (whole / "lr.png").read_bytes().startswith(b"\x89PNG")
    recipe = read_recipe(whole)
    assert (recipe.optim.lr, recipe.train.batch_size) == ("auto", "auto")
    assert recipe.digest == Recipe.of({}, [*TINY, *AUTO]).digest != Recipe.of({}, TINY).digest
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["lr"] == pytest.approx(known["lr"], rel=0.3)  # of its last step, before the cosine has fallen far
    notes = json.loads((whole / "report.json").read_text())["notes"]
    assert any(note.startswith(f"optim.lr=auto: {known['lr']:g} by a range test of 100 steps") for note in notes)
    assert any(note.startswith("train.batch_size=auto: 4; ") for note in notes)
    assert evaluate_run(whole).images == 1000


def test_a_run_that_was_stopped_resumes_with_its_numbers_to_the_same_bits(whole, tmp_path, monkeypatch):
    recipe = Recipe.of({}, [*TINY, *AUTO])
    stop = StopAt(45)  # 27 steps an epoch
    with pytest.raises(Stop):
        train(recipe, tmp_path / "run", callbacks=[stop])
    assert len(stop.notes) == 2
    monkeypatch.setattr(auto_settings, "range_test", lambda *_, **__: pytest.fail("tested again"))
    monkeypatch.setattr(auto_settings, "available_memory", lambda: 1.0)  # another machine
    train(recipe, tmp_path / "run", resume=True)
    one, other = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "run"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    (tmp_path / "run" / "auto.json").unlink()
    with pytest.raises(RecipeError, match=r"has no auto\.json with the train\.batch_size that it began with"):
        train(recipe, tmp_path / "run", resume=True)
    (tmp_path / "run" / "auto.json").write_text("{")
    with pytest.raises(RecipeError, match=r"auto\.json is damaged"):
        train(recipe, tmp_path / "run", resume=True)


def test_a_run_of_the_numbers_is_the_same_run(whole, tmp_path):
    known = json.loads((whole / "auto.json").read_text())
    numbers = [f"optim.lr={known['lr']!r}", f"train.batch_size={known['batch_size']}"]
    train(Recipe.of({}, [*TINY, *numbers]), tmp_path / "run")
    one, other = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "run"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not (tmp_path / "run" / "auto.json").exists()


@pytest.mark.parametrize("free", [1e6, 3e7, 1e12])
def test_a_batch_takes_half_of_the_memory(free, monkeypatch):
    recipe = Recipe.of({}, ["peers=[resnet8, resnet8]", "train.batch_size=auto"])
    data = load_data(recipe)
    monkeypatch.setattr(auto_settings, "available_memory", lambda: free)
    grid = auto_settings.ProcessGrid(recipe.train)
    found, note = auto_settings._batch_size(recipe, data, grid)
    cohort = recipe.cohort_for(data)
    with evaluating(cohort):
        each = kept_bytes(cohort, torch.zeros(4, data.channels, *data.size))
    assert found == {1e6: max(2, 1 << int(5e5 / each).bit_length() >> 1), 1e12: 256}.get(free, found)
    assert found & (found - 1) == 0
    assert found == 2 or found * each <= free / 2
    assert found == 256 or 2 * found * each > free / 2
    assert f"{free / 2**30:.1f} GiB free" in note


def test_numbers_are_needed_where_no_run_is():
    recipe = Recipe.of({}, ["train.batch_size=auto"])
    data = load_data(recipe)
    with pytest.raises(RecipeError, match=r"train\.batch_size=auto is determined when a run begins"):
        train_loader(recipe, data, torch.device("cpu"))
    for wrong in ("train.batch_size=all", "optim.lr=fast", "train.batch_size=1"):
        with pytest.raises(RecipeError):
            Recipe.of({}, [wrong])
