"""Data that do not fit the task or each other: what is wrong, and where, before the first step."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from metamixer import Cohort
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.data import Augment, DataError, TensorImages, TrainLoader, load
from metamixer.models import build
from metamixer.training.trainer import TrainingError
from tests import toys
from tests.command import metamixer

TINY = [
    "--peers",
    "resnet8,resnet8",
    "--epochs",
    1,
    "--batch-size",
    8,
    "--device",
    "cpu",
    "--image-size",
    12,
    "--quiet",
]


def photos(root, count=6, **counts):
    """So many images for each class, or what ``counts`` says of it."""
    rng = np.random.default_rng(len(str(root)))
    for name in dict.fromkeys(("cat", "dog", *counts)):
        (root / name).mkdir(parents=True)
        for number in range(counts.get(name, count)):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(root / name / f"{number}.png")
    return root


def no_class(root):
    root.mkdir()
    for number in range(4):
        Image.new("RGB", (12, 12)).save(root / f"{number}.png")


def one_class(root):
    photos(root)
    (root / "dog").rename(root.parent / "aside")


def other_classes_in_test(root):
    photos(root / "train")
    photos(root / "test", cow=3)


def no_training_images(root):
    photos(root / "val")
    photos(root / "test")


def all_damaged(root):
    for path in (photos(root) / "cat").iterdir():
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            no_class,
            "error: data: no class folders; it holds '0.png', '1.png', '2.png', '3.png'. Expected one folder for each",
        ),
        (one_class, "error: data: one class, 'cat', is nothing to learn; expected two or more"),
        (lambda root: photos(root, dog=0), "error: data: no image in 'dog'; files that end in .avif"),
        (lambda root: photos(root / "train", dog=0), "error: data/train: no image in 'dog'"),
        (other_classes_in_test, "error: data/test: has 'cow', not among the classes of data/train: 'cat', 'dog'"),
        (no_training_images, "error: data: has 'test', 'val' but no 'train' folder to learn from"),
        (
            all_damaged,
            "error: data: of 'cat' no training image can be read; the first cause: data/cat/0.png: not an image",
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(make, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("data"))
    result = metamixer("train", "--data", "data/", *TINY, "data.on_error=skip", "--out", "run", code=65)
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not Path("run").exists()


@pytest.mark.parametrize("count", [1, 7, 8, 9])
def test_as_few_images_as_there_are_are_trained_on(count, tmp_path):
    """Of each class, with batches of 8: fewer than a batch, about one, a class of one image."""
    root = photos(tmp_path / "data", count=1 if count == 1 else count // 2, dog=-(-count // 2))
    metamixer("train", "--data", root, *TINY, "data.val_share=0.3", "--out", tmp_path / "run", code=code_of(root))


def code_of(root):
    """Two images are two classes of one: none can be held out for a figure."""
    return 2 if len(list(root.rglob("*.png"))) == 2 else 0


def test_a_class_of_one_image_is_its_own_companion():
    images = toys.images(13)
    rare = TensorImages(images.images, torch.tensor([0] * 6 + [1] * 6 + [2]), images.classes)
    loader = TrainLoader(rare, Augment(pad=0, flip=False), [0.0], [1.0], 13, seed=0, companions=True)
    for epoch in range(20):
        batch = next(loader.epoch(epoch))
        row = int((batch.labels == 2).nonzero())
        assert torch.equal(batch.companions[row], batch.images[row])
        for other in range(13):
            if other != row:
                assert not torch.equal(batch.companions[other], batch.images[other])


def test_folders_with_other_classes_in_other_places_keep_their_labels(tmp_path):
    """Labels go by the names in ``train``, whichever of them the other splits have."""
    photos(tmp_path / "data" / "train", ant=6)
    root = photos(tmp_path / "data" / "test", cat=0, dog=2).parent
    (root / "test" / "cat").rmdir()
    data = load(root)
    assert data.classes == ("ant", "cat", "dog")
    assert data.test.labels.tolist() == [2, 2]


class Fixed:
    """The same batches in every epoch."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch, start=0):
        return iter(self.batches[start:])


def batches():
    return list(toys.loader().epoch(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_stop_the_training_before_they_reach_the_weights(value):
    spoilt = batches()
    images = spoilt[1].images.clone()
    images[3, 0, 2, 2] = value
    spoilt[1] = dataclasses.replace(spoilt[1], images=images)
    made = toys.trainer()
    with pytest.raises(TrainingError, match=r"step 2"):
        made.fit(Fixed(spoilt))
    assert all(parameter.isfinite().all() for parameter in made.cohort.parameters())


def test_a_label_without_a_class_is_refused_before_the_first_step():
    spoilt = batches()
    spoilt[0] = dataclasses.replace(spoilt[0], labels=spoilt[0].labels + 3)
    made = toys.trainer()
    before = toys.weights(made)
    with pytest.raises(TrainingError, match=r"there is a label [345]; accepted: 0 to 2"):
        made.fit(Fixed(spoilt))
    assert all(torch.equal(value, before[name]) for name, value in made.cohort.state_dict().items())


def test_peers_for_other_images_are_refused_before_the_first_step():
    made = toys.trainer()
    colour = [dataclasses.replace(batch, images=batch.images.repeat(1, 3, 1, 1)) for batch in batches()]
    with pytest.raises(TrainingError, match=r"peer 0 cannot take images of 3×8×8: .*3 channels"):
        made.fit(Fixed(colour))
    large = [dataclasses.replace(batch, images=batch.images.repeat(1, 1, 2, 2)) for batch in batches()]
    with pytest.raises(TrainingError, match=r"peer 0 cannot take images of 1×16×16"):
        toys.trainer().fit(Fixed(large))


def test_peers_with_other_classes_are_refused_before_the_first_step():
    def network(classes):
        return nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(144, classes))

    made = toys.trainer()
    cohort = Cohort([network(3), network(5)], stages=["0"])
    made = type(made)(cohort, made.mixer, made.loss, epochs=1, accelerator="cpu")
    with pytest.raises((TrainingError, ValueError), match=r"peer 0 \(2, 3\), peer 1 \(2, 5\)"):
        made.fit(toys.loader())


def test_a_network_for_one_size_of_images_is_refused_by_name_from_the_command_line(tmp_path):
    peers = "peers=[resnet8, {name: timm:vit_tiny_patch16_224, img_size: 32}]"
    words = ["train", peers, "--image-size", 48, "--epochs", 1, "--device", "cpu", "data.train_limit=4", "--quiet"]
    result = metamixer(*words, "--out", tmp_path / "run", code=65)
    assert "error: peer 1 timm:vit_tiny_patch16_224 cannot take images of 1×48×48: " in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda weights: weights["stem.0.weight"].view(-1)[5:6].fill_(float("nan")),
            "'stem.0.weight' holds values that",
        ),
        (lambda weights: weights["classifier.weight"].view(-1)[:1].fill_(float("inf")), "'classifier.weight' holds"),
        (lambda weights: weights.update({"stem.0.weight": torch.zeros(7)}), "stem.0.weight"),
        (lambda weights: weights.pop("stem.0.weight"), "stem.0.weight"),
    ],
)
def test_weights_that_would_spoil_a_peer_are_named_with_their_file(spoil, said, tmp_path):
    weights = {
        name: value.clone() for name, value in build("resnet8", num_classes=10, in_channels=1).state_dict().items()
    }
    spoil(weights)
    file = tmp_path / "start.safetensors"
    save_file(weights, file)
    words = ["train", "--peers", "resnet8,resnet8", f"peers.1.weights={file}", "--epochs", 1, "data.train_limit=4"]
    result = metamixer(*words, "--out", tmp_path / "run", "--quiet", code=2)
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: peers.1 (resnet8): weights={file}")
    assert said in last
    assert not (tmp_path / "run").exists()


def test_what_the_data_say_is_not_asked_of_a_peer():
    with pytest.raises(RecipeError, match=r"peers\.0 \(resnet8\): num_classes come from the data; leave them out here"):
        Recipe.of({"peers": [{"name": "resnet8", "num_classes": 5}]}).build_cohort(10, 1, (8, 8))


def test_labels_outside_of_the_classes_are_refused():
    pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    for labels, said in (([0, 1, 2], "from 0 to 2, but the 2 classes"), ([0, -1, 1], "from -1 to 1")):
        with pytest.raises(DataError, match=said):
            TensorImages(pixels, torch.tensor(labels), ("a", "b"))
    with pytest.raises(DataError, match="from nan to nan; expected values from 0 to 255"):
        TensorImages(pixels.float() / 0, torch.tensor([0, 1, 0]), ("a", "b"))
