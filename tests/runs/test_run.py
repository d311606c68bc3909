"""A whole run in its folder, from recipe to deployed network."""

import csv
import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

from metamixer.config.recipe import Recipe
from metamixer.config.registry import find
from metamixer.config.yaml_file import RecipeError
from metamixer.core.types import Outputs
from metamixer.data import Augment, DataError, normalise
from metamixer.data.policies import Changes
from metamixer.data.random_crop import RandomCrop
from metamixer.evaluation.evaluate import evaluate
from metamixer.export import export
from metamixer.export.errors import ExportError
from metamixer.export.load_model import load
from metamixer.export.select_network import choose
from metamixer.losses import DML
from metamixer.models import build
from metamixer.report import report
from metamixer.runs.classifier import Classifier, predict
from metamixer.runs.run import (
    _wants_companions,
    augmentation,
    check_outside_of_data,
    eval_loader,
    evaluate_run,
    load_data,
    open_run,
    train,
    train_loader,
)
from metamixer.training.auto_strength import uncertainty
from metamixer.training.checkpoint import CheckpointError, pointed
from metamixer.training.trainer import TrainingError

TINY = ["data.train_limit=12", "peers.0.name=resnet8", "peers.1.name=resnet14", "train.epochs=2", "train.batch_size=40",
        "train.validate_every=1", "optim.lr=0.02", "optim.warmup=0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe.of({}, TINY)
    return recipe, train(recipe, folder)


def test_the_folder_holds_what_it_should(run):
    recipe, result = run
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "recipe.yaml", "data.json", "environment.json", "metrics.jsonl", "metrics.csv", "events", "checkpoints",
        "model.safetensors", "report.json",
    }  # fmt: skip
    assert Recipe.read(result.folder / "recipe.yaml").digest == recipe.digest
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == str(torch.__version__)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["val/accuracy/ensemble"]) == lines[1]["val"]["ensemble"]["accuracy"]
    assert len(list((result.folder / "events").iterdir())) == 1


def test_the_report_is_what_evaluate_says(run):
    _, result = run
    report = json.loads((result.folder / "report.json").read_text())
    assert report["split"] == "test"
    assert report["last_epoch"] == result.last.as_dict() == evaluate_run(result.folder).as_dict()
    assert evaluate_run(result.folder, "val", "BEST").peers[result.best.peer].accuracy == result.best.accuracy


def test_the_model_file_is_the_best_peer_and_needs_no_metamixer(run):
    _, result = run
    with safetensors.safe_open(result.model, "pt") as file:
        metadata = file.metadata()
    weights = safetensors.torch.load_file(result.model)
    name = json.loads(metadata["architecture"])["name"]
    assert name == ("resnet8", "resnet14")[result.best.peer]
    network = build(name, num_classes=10, in_channels=1)
    network.load_state_dict(weights)  # plain state dict: nothing of the cohort in its keys
    network.eval()
    test = load_data(Recipe.of({}, TINY)).test
    prepared = json.loads(metadata["preprocessing"])
    images = (test.images.float() / 255 - prepared["mean"][0]) / prepared["std"][0]
    with torch.no_grad():
        accuracy = (network(images).argmax(1) == test.labels).float().mean()
    assert accuracy == pytest.approx(result.deployed.accuracy, abs=1e-6)
    assert len(json.loads(metadata["classes"])) == 10


def test_the_classifier_gives_the_same_as_the_network(run):
    _, result = run
    classifier = Classifier.load(result.model)
    test = load_data(Recipe.of({}, TINY)).test
    guessed = classifier.probabilities(test.images)
    assert guessed.sum(1).allclose(torch.ones(1000))
    accuracy = (guessed.argmax(1) == test.labels).float().mean()
    assert accuracy == pytest.approx(result.deployed.accuracy, abs=1e-6)


def test_a_folder_in_use_is_refused(run):
    recipe, result = run
    with pytest.raises(RecipeError, match="is a run: --resume"):
        train(recipe, result.folder)


def test_resume_of_another_recipe_names_the_keys(run):
    _, result = run
    other = Recipe.of({}, [*TINY, "optim.lr=0.01", "train.epochs=3"])
    with pytest.raises(RecipeError) as caught:
        train(other, result.folder, resume=True)
    assert "optim.lr: 0.02, here 0.01" in str(caught.value)
    assert "train.epochs: 2, here 3" in str(caught.value)


def test_resume_of_a_finished_run_gives_the_same_result(run, tmp_path):
    recipe, result = run
    shutil.copytree(result.folder, tmp_path / "copy")
    again = train(recipe, tmp_path / "copy", resume=True)
    assert (again.last, again.deployed, again.best) == (result.last, result.deployed, result.best)
    before, after = (safetensors.torch.load_file(path) for path in (result.model, again.model))
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert before.keys() == after.keys()


def test_a_run_whose_recipe_has_settings_that_were_removed(run, tmp_path):
    _, result = run
    folder = shutil.copytree(result.folder, tmp_path / "old")
    written = (folder / "recipe.yaml").read_text().replace("  compile: false\n", "  compile: false\n  graphs: false\n")
    assert "graphs: false" in written
    (folder / "recipe.yaml").write_text(written)
    assert evaluate_run(folder).as_dict() == result.last.as_dict()
    again = train(Recipe.read(folder / "recipe.yaml"), folder, resume=True)
    assert again.last.as_dict() == result.last.as_dict()


def test_a_checkpoint_that_is_gone_or_damaged_is_named(run, tmp_path):
    _, result = run
    with pytest.raises(RecipeError, match="is not a run"):
        evaluate_run(tmp_path)
    shutil.copytree(result.folder, tmp_path / "copy")
    state = pointed(tmp_path / "copy" / "checkpoints", "LATEST") / "weights.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        evaluate_run(tmp_path / "copy")


def test_without_validation_and_test_split_there_is_nothing_to_report(tmp_path):
    recipe = Recipe.of({}, [*TINY, "data.val_share=0", "train.epochs=1"])
    result = train(recipe, tmp_path / "run")
    assert (result.best.epoch, result.best.peer) == (1, 0)
    assert result.last.peers[0] == result.deployed


def test_a_deployed_network_becomes_a_frozen_teacher(run, tmp_path):
    _, result = run
    name = ("resnet8", "resnet14")[result.best.peer]
    recipe = Recipe.of(
        {"peers": [{"name": name, "weights": str(result.model), "frozen": True}, "resnet8"]},
        [*TINY[:1], *TINY[4:], "train.epochs=1"],
    )
    taught = train(recipe, tmp_path / "run")
    assert taught.last.peers[0].accuracy == result.deployed.accuracy
    assert taught.best.peer == 1


@pytest.mark.parametrize(
    ("mixer", "wanted"),
    [("none", False), ("mixup", False), ("cutmix", False), ("manifold-mixup", False), ("same-class-cutmix", True),
     ("metamixer", True), ({"name": "metamixer", "local_probability": 0}, False),
     ({"name": "metamixer", "partners": "any"}, False), ("metamixer.mixers:MetaMixer", True)],
)  # fmt: skip
def test_companions_are_drawn_only_where_they_are_pasted(mixer, wanted):
    recipe = Recipe.of({"mixer": mixer}, allow_imports=True)
    assert _wants_companions(recipe) is wanted


def test_the_default_crop_is_an_eighth_of_the_side():
    recipe = Recipe.of({}, TINY)
    data = load_data(recipe)
    assert train_loader(recipe, data, torch.device("cpu")).augment.pad == 4
    padded = Recipe.of({}, [*TINY, "data.pad=1", "data.flip=false"])
    loader = train_loader(padded, data, torch.device("cpu"))
    assert (loader.augment.pad, loader.augment.flip) == (1, False)


class OfViews(DML):
    """Deep mutual learning of peers that see augmentations of their own."""

    needs: ClassVar[tuple[str, ...]] = ("views",)
    seen: ClassVar[list[Outputs]] = []

    def forward(self, outputs, targets, progress=None):
        if torch.is_grad_enabled():
            self.seen.append(outputs)
        return super().forward(outputs, targets, progress)


def test_peers_see_views_of_their_own_where_the_loss_needs_them(tmp_path):
    recipe = Recipe.of(
        {"loss": "tests.runs.test_run:OfViews", "mixer": "none"}, [*TINY, "train.epochs=1"], allow_imports=True
    )
    loader = train_loader(recipe, load_data(recipe), torch.device("cpu"))
    assert (loader.views, loader.per_class) == (2, None)
    seen = find(recipe.loss.name, {}, "loss").seen
    seen.clear()
    result = train(recipe, tmp_path / "run")
    assert len(seen) == 3
    for outputs in seen:
        first, second = outputs.images
        assert first.shape == second.shape
        differ = (first != second).flatten(1).any(1)
        assert differ.float().mean() > 0.9  # one crop and flip in 162 is the other peer's
    assert result.best.epoch == 1
    plain = Recipe.of({}, TINY)
    assert train_loader(plain, load_data(plain), torch.device("cpu")).views == 1


def test_a_frozen_teacher_has_a_view_as_well():
    peers = ["resnet8", "resnet8", {"name": "resnet8", "frozen": True}]
    recipe = Recipe.of({"loss": "tests.runs.test_run:OfViews", "peers": peers}, TINY[:1], allow_imports=True)
    assert train_loader(recipe, load_data(recipe), torch.device("cpu")).views == 3


def test_contrastive_peers_train_on_batches_of_classes(tmp_path):
    content = {"loss": {"name": "mcl", "logits": True}, "mixer": "none"}
    recipe = Recipe.of(content, [*TINY, "train.batch_size=20", "train.per_class=2", "train.epochs=1"])
    loader = train_loader(recipe, load_data(recipe), torch.device("cpu"))
    for batch in loader.epoch(0):
        assert torch.bincount(batch.labels).tolist() == [2] * 10
    result = train(recipe, tmp_path / "run")
    weights = safetensors.torch.load_file(result.model)
    assert not [name for name in weights if "projector" in name]
    last = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"task", "vcl", "soft_vcl", "icl", "soft_icl", "distill"} <= set(last["terms"])


def test_batches_that_cannot_be_of_classes_are_refused(tmp_path):
    recipe = Recipe.of({"loss": "mcl"}, [*TINY, "train.per_class=2"])
    with pytest.raises(DataError, match="needs 20 classes, these images have 10; expected batch_size=20"):
        train(recipe, tmp_path / "run")


def test_a_run_inside_of_its_data_is_refused(tmp_path, monkeypatch):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    recipe = Recipe.of({"data": {"name": "."}})
    with pytest.raises(RecipeError, match=r"runs/one is inside of the data, \.; .*: --out \.\./runs/one"):
        train(recipe, Path("runs/one"))
    assert not Path("runs").exists()
    with pytest.raises(RecipeError, match="inside of the data"):
        check_outside_of_data(Recipe.of({"data": {"name": "scenes:../photos"}}).data, Path("cat"))
    check_outside_of_data(recipe.data, Path("../runs/one"))
    check_outside_of_data(Recipe().data, Path("runs/one"))


def test_fine_tuning_says_what_was_taken_and_runs_without_the_file_later(tmp_path):
    """Weights of five classes for ten, a first stage that learns from the second epoch on, rates by layer."""
    torch.manual_seed(7)
    trained = build("resnet8", num_classes=5, in_channels=1)
    facts = {"classes": tuple("abcde"), "channels": 1, "size": (28, 28), "mean": (0.1,), "std": (0.2,), "facts": {}}
    Classifier(trained, "resnet8", {}, **facts).save(tmp_path / "x.safetensors")
    peer = {"name": "resnet8", "weights": str(tmp_path / "x.safetensors"), "freeze": "stage1", "freeze_epochs": 1}
    recipe = Recipe.of({"peers": [peer, "resnet8"]}, [
        "data.train_limit=12", "train.epochs=1", "train.batch_size=40", "optim.layer_decay=0.7", "peers.0.lr=0.01"
    ])  # fmt: skip
    seen = []

    class Look:
        def on_start(self, start):
            seen.extend(start.notes)

        def on_step(self, record): ...
        def on_epoch(self, record): ...
        def on_end(self): ...

    train(recipe, tmp_path / "run", callbacks=[Look()])
    (note,) = seen
    assert note.startswith("0 resnet8: ")
    assert "tensors are those of x.safetensors, whose classes were a, b, c and 2 more; new is the head" in note
    assert json.loads((tmp_path / "run/report.json").read_text())["notes"][0] == note
    (tmp_path / "x.safetensors").unlink()
    network = open_run(tmp_path / "run").cohort.peers[0]
    assert torch.equal(network.stage1[0].conv1.weight, trained.stage1[0].conv1.weight)
    assert not torch.equal(network.stage2[0].conv1.weight, trained.stage2[0].conv1.weight)
    assert network.classifier.weight.shape == (10, 64)


def test_a_teacher_of_classes_in_another_order(tmp_path):
    """It is right about names in a run whose folders are in another order, and is not exported as one of ours."""
    data = load_data(Recipe.of({}, ["data.train_limit=2"]))
    torch.manual_seed(0)
    teacher = build("resnet8", num_classes=10, in_channels=1).eval()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1)).tolist()
    facts = {"channels": 1, "size": (28, 28), "mean": (0.5,), "std": (0.5,), "facts": {}}
    names = tuple(data.classes[index] for index in order)
    Classifier(teacher, "resnet8", {}, names, **facts).save(tmp_path / "x.safetensors")
    peer = {"name": "resnet8", "weights": str(tmp_path / "x.safetensors"), "frozen": True}
    recipe = Recipe.of({"peers": [peer, "resnet8"], "loss": "kd"}, ["data.train_limit=12", "train.epochs=1"])
    train(recipe, tmp_path / "run")
    run = open_run(tmp_path / "run")
    pixels = run.data.test.images[:20]
    found = run.cohort(normalise(pixels, run.data.mean, run.data.std)).logits[0]
    wanted = teacher(normalise(pixels, [0.5], [0.5]))[:, [order.index(label) for label in range(10)]]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ExportError, match="--peer 0 is a teacher with a normalisation"):
        choose(tmp_path / "run", "0")


def test_many_channels_of_16_bits_from_a_folder_to_a_file(tmp_path):
    """Five channels whose classes differ in the lower 8 bits alone, which only a run with data.bits=16 can see."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("low", "high")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(40):
            array = np.full((8, 8, 5), 30000, np.uint16) + rng.integers(0, 40, (8, 8, 5), np.uint16)
            array[..., 4] += np.uint16(100 * label)
            np.save(tmp_path / "data" / name / f"{number}.npy", array)
    recipe = Recipe.of({"data": {"name": str(tmp_path / "data"), "bits": 16, "flip": False, "pad": 0}}, [
        "peers=[resnet8]", "mixer=none", "train.epochs=8", "train.batch_size=8", "train.accelerator=cpu",
    ])  # fmt: skip
    result = train(recipe, tmp_path / "run")
    assert result.deployed.accuracy == 1.0
    written = export(tmp_path / "run", to="onnx")
    files = sorted((tmp_path / "data" / "high").iterdir())[:3]
    shares = [predict(load(place).classifier, files) for place in (tmp_path / "run", written.path)]
    assert (shares[0].argmax(1) == 0).all()  # "high" comes first
    torch.testing.assert_close(*shares, rtol=1e-4, atol=1e-5)
    arrays = load(tmp_path / "run").classifier.predict([np.load(file) for file in files])
    assert torch.equal(arrays, shares[0])
    said = json.loads(written.facts.read_text())["input"]
    assert (said["dtype"], said["bits"], said["shape"]) == ("float32", 16, ["batch", 5, 8, 8])
    with pytest.raises(DataError, match="the images have 5 channels; expected augment=light or none"):
        train(Recipe.of(recipe.as_dict(), ["data.augment=trivial"]), tmp_path / "other")


def test_augmentation_is_what_the_recipe_says():
    data = load_data(Recipe.of({}, ["data.train_limit=2"]))
    assert augmentation(Recipe(), data) == Augment(4, True)
    changes = ["data.augment=rand", "data.erasing=0.25", "data.pad_mode=reflect", "data.flip=false", "data.pad=2",
               "data.augment_magnitude=5", "data.color_jitter=0.4"]  # fmt: skip
    recipe = Recipe.of({}, changes)
    wanted = Changes("rand", 5, None, (0.4, 0.4, 0.4, 0.0), 0.25)
    assert augmentation(recipe, data) == Augment(2, False, "reflect", changes=wanted)
    assert recipe.digest != Recipe().digest
    assert Recipe.of({}, ["data.color_jitter=0", "data.crop_scale=null"]).digest == Recipe().digest
    loader = train_loader(recipe, data, torch.device("cpu"))
    assert torch.equal(next(loader.epoch(0)).images, next(loader.epoch(0)).images)
    assert augmentation(Recipe.of({}, ["data.augment=none"]), data) == Augment(0, False, changes=Changes("none"))
    hue = Recipe.of({}, ["data.augment=none", "data.crop_scale=[0.3,1]", "data.color_jitter=[0.1,0.2,0.3,0.1]"])
    assert augmentation(hue, data) == Augment(
        0, False, crop=RandomCrop((0.3, 1)), changes=Changes("none", jitter=(0.1, 0.2, 0.3, 0.1))
    )
    assert Recipe.of({}, ["data.crop_ratio=[0.75,1.3333333333333333]"]).digest == Recipe().digest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.crop_scale=[0.5]"], "data.crop_scale"),
        (["data.crop_scale=[0.5,2]"], "data: crop_scale=.0.5, 2.0.: expected"),
        (["data.crop_scale=[0.5,1]", "data.pad=4"], "data: pad=4 with crop_scale; expected one of both"),
        (
            ["data.augment=trivial", "data.augment_ops=3"],
            "data: augment_ops=3 with augment=trivial; expected with",
        ),
        (["data.erasing=1.5"], "data: erasing=1.5; expected a probability from 0 to 1"),
        (["data.color_jitter=[0.1,0.2]"], "data.color_jitter"),
    ],
)
def test_augmentation_that_does_not_exist(changes, words):
    with pytest.raises(RecipeError, match=words):
        Recipe.of({}, changes)


def test_auto_strength_in_a_run(tmp_path):
    """The fixed training images are those of the run without augmentation, and metrics and report say what happened."""
    recipe = Recipe.of({}, [*TINY, "mixer.strength=auto", "train.strength_target=0", "train.strength_epochs=1"])
    result = train(recipe, tmp_path / "run")
    data = load_data(recipe)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    run = open_run(tmp_path / "run")
    known, new = (
        sum(score.accuracy for score in evaluate(run.cohort, eval_loader(recipe, data, images, "cpu")).peers) / 2
        for images in (data.train, data.val)
    )
    assert len(data.train) < 512, "all of them are among the fixed ones"
    assert lines[-1]["overfitting"] == pytest.approx((known - new) / (1 - new), abs=1e-12)
    assert lines[0]["strength"] == 0.0
    new = sum(peer["accuracy"] for peer in lines[0]["val"]["peers"]) / 2
    known = new + lines[0]["overfitting"] * (1 - new)
    error = uncertainty(known, new, (len(data.train), len(data.val)))
    assert lines[1]["strength"] == (1.0 if lines[0]["overfitting"] > error else 0.0)
    page = tmp_path / "page.html"
    report([tmp_path / "run"], page)
    assert "Strength of mixing, and the overfitting that it follows" in page.read_text()
    assert result.epochs == 2


def test_auto_strength_without_validation_images(tmp_path):
    recipe = Recipe.of({}, [*TINY, "mixer.strength=auto", "data.val_share=0"])
    with pytest.raises(TrainingError, match=r"strength='auto' needs validation data"):
        train(recipe, tmp_path / "run")
