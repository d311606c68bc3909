"""Sets by name: the standard ones, Hugging Face data sets, and names that are none."""

import gzip
import hashlib
import shutil
import struct
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import DATASETS, DataError, load

RNG = np.random.default_rng(0)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, suffix="", count=30):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    images = RNG.integers(0, 256, (count, 28, 28), np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    return images


@pytest.mark.parametrize("name", ["cifr10", "Cifar-10"])
def test_unknown_names_are_answered_with_close_ones(name):
    with pytest.raises(DataError, match=r"did you mean 'cifar10'.*fashion-mini, .* 'hf:NAME' would work"):
        load(name)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"fashion-mini"}))
def test_missing_files_are_answered_with_the_folder_and_the_option(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "download=True" in str(caught.value)


def test_mnist_in_torchvision_s_folder(tmp_path):
    images = write_idx(tmp_path / "MNIST" / "raw")
    data = load("mnist", root=tmp_path, val_share=0)
    assert np.array_equal(data.train.images[:, 0].numpy(), images)
    assert data.classes[3] == "3 - three"
    assert not data.mirror
    assert load("mnist", root=tmp_path, image_size=32, channels=3).size == (32, 32)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train-images-idx3-ubyte", lambda content: content[:-9]),
        ("train-images-idx3-ubyte", lambda _: b""),
        ("train-images-idx3-ubyte", lambda _: b"<html>no such file</html>"),
        ("train-images-idx3-ubyte", lambda content: b"\0\0\x08\3" + b"\xff" * 12 + content[16:]),
        ("train-labels-idx1-ubyte", lambda content: content[:-1] + b"\x63"),
        ("t10k-labels-idx1-ubyte", lambda content: content[:7] + b"\x1d" + content[8:-1]),
    ],
)
def test_damaged_files_in_torchvision_s_folder(tmp_path, file, change):
    write_idx(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match="'mnist' ") as caught:
        load("mnist", root=tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_packed_files_in_torchvision_s_folder_are_unpacked_without_a_download(tmp_path, monkeypatch):
    import torchvision.datasets

    folder = tmp_path / "MNIST" / "raw"
    images = write_idx(folder, ".gz")
    names = [name for name, _ in torchvision.datasets.MNIST.resources]
    digests = [hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest() for name in names]
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", list(zip(names, digests, strict=True)))
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["file:///nowhere/"])
    data = load("mnist", root=tmp_path, download=True, val_share=0)
    assert np.array_equal(data.train.images[:, 0].numpy(), images)


@pytest.mark.parametrize("folder", ["", "fashion-mnist"])
def test_fashion_mnist_from_its_four_files(tmp_path, folder):
    images = write_idx(tmp_path / folder, ".gz")
    data = load("fashion-mnist", root=tmp_path, val_share=0)
    assert np.array_equal(data.test.images[:, 0].numpy(), images)
    assert data.classes[0] == "T-shirt/top"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-9], "cannot be read|more bytes"),
        (lambda content: gzip.compress(gzip.decompress(content)[:-5]), "at byte 23531, expected 5 more bytes"),
        (lambda content: gzip.compress(gzip.decompress(content) + b"x"), "at byte 23536, expected the end"),
        (lambda content: gzip.compress(b"\0\0\x0d\3" + bytes(12)), "at byte 0, expected an idx header"),
        (lambda content: gzip.compress(b"\0\0\x08\3" + b"\xff" * 12), "at byte 4"),
        (lambda content: b"", "at byte 0, .*found nothing"),
        (lambda content: b"<html>", "cannot be read"),
    ],
)
def test_damaged_idx_files_are_named_with_the_position(tmp_path, damage, message):
    write_idx(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load("fashion-mnist", root=tmp_path)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "origin", "shape"),
    [
        ("svhn", "SVHN", (40, 3, 32, 32)),
        ("stl10", "STL10", (40, 3, 96, 96)),
    ],
)
def test_what_torchvision_reads(monkeypatch, name, origin, shape):
    import torchvision.datasets

    pixels = RNG.integers(0, 256, shape, np.uint8)
    asked = []

    def stand_in(root, download, split):
        asked.append((root, download, split))
        return SimpleNamespace(data=pixels, labels=np.arange(40) % 10)

    monkeypatch.setattr(torchvision.datasets, origin, stand_in)
    data = load(name, root="somewhere", val_share=0)
    assert np.array_equal(data.train.images.numpy(), pixels)
    assert asked == [("somewhere", False, "train"), ("somewhere", False, "test")]


def test_a_failed_download_says_so(monkeypatch, tmp_path):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.KMNIST, "mirrors", ["file:///nowhere/"])
    with pytest.raises(DataError, match=r"the download failed: .*train-images-idx3-ubyte\.gz: .*No such file"):
        load("kmnist", root=tmp_path, download=True)


@pytest.fixture
def hub(tmp_path):
    """Saves a small data set to disk, and gives its name."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def make(labels, names=("x", "y"), test=None, bad=None, **columns):
        def split(labels, names):
            images = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)) for _ in labels]
            features = {"photo": datasets.Image(), "kind": datasets.ClassLabel(names=list(names))}
            features |= {name: datasets.ClassLabel(names=["p", "q"]) for name in columns}
            content = {"photo": images, "kind": labels, **columns}
            if bad is not None:
                content["photo"] = [{"bytes": b"no" if i == bad else _png(im)} for i, im in enumerate(images)]
            return datasets.Dataset.from_dict(content, features=datasets.Features(features))

        parts = {"train": split(labels, names)} | ({"test": split(*test)} if test else {})
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
        return f"hf:{tmp_path / 'saved'}"

    def _png(image):
        image.save(tmp_path / "one.png")
        return (tmp_path / "one.png").read_bytes()

    return make


def test_a_saved_hugging_face_set(hub):
    # The test split numbers its classes the other way round, and has an image without label.
    name = hub([0, 1] * 10, test=([0, 1, 1, -1], ("y", "x")))
    data = load(name, val_share=0.1)
    assert (len(data.train), len(data.val), len(data.test)) == (18, 2, 3)
    assert data.classes == ("x", "y")
    assert data.test.labels.tolist() == [1, 0, 0]
    assert "1 images of test have no label and were left out" in data.notes
    streamed = load(name, cache_limit_bytes=10, image_size=8, val_share=0.1)
    assert torch.equal(streamed.train.fetch(torch.arange(18)), data.train.images)


def test_hugging_face_columns_are_asked_for_where_they_are_not_plain(hub):
    name = hub([0, 1] * 4, coarse=[0, 0, 1, 1] * 2)
    with pytest.raises(DataError, match=r"2 columns are a ClassLabel; choose one by data\.label_column=NAME.*'coarse'"):
        load(name)
    assert load(name, label_column="coarse", val_share=0).train.labels.tolist() == [0, 0, 1, 1] * 2
    with pytest.raises(DataError, match="image_column='img' is not a column"):
        load(name, label_column="coarse", image_column="img")
    with pytest.raises(DataError, match="image_column='kind' holds no images"):
        load(name, label_column="coarse", image_column="kind")


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize("plain", [False, True])
def test_a_folder_of_tables_with_classes_by_name(tmp_path, monkeypatch, ending, plain):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "cloned" / "data"
    folder.mkdir(parents=True)
    sets = {}
    for part, labels in (("train", ["cat", "ant"] * 5), ("test", ["ant", "cat"])):
        files = []
        for _ in labels:
            file = BytesIO()
            Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).save(file, "PNG")
            files.append({"bytes": file.getvalue(), "path": None})
        made = datasets.Dataset.from_dict({"picture": files, "label": labels})
        if not plain:
            made = made.cast_column("picture", datasets.Image())
        if ending == "parquet":
            made.to_parquet(folder / f"{part}-00000-of-00001.parquet")
        else:
            made.save_to_disk(tmp_path / part)
            shutil.copy(next((tmp_path / part).glob("*.arrow")), folder / f"{part}-00000-of-00001.arrow")
        sets[part] = [np.array(Image.open(BytesIO(each["bytes"]))) for each in files]
    data = load(folder.parent, val_share=0)
    assert data.classes == ("ant", "cat")
    assert data.train.labels.tolist() == [1, 0] * 5
    assert data.test.labels.tolist() == [0, 1]
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), np.stack(sets["train"]))
    assert load(f"hf:{folder.parent}", val_share=0).classes == data.classes


def test_damaged_hugging_face_images_are_named(hub):
    name = hub([0, 1] * 4, bad=5)
    with pytest.raises(DataError, match="train image 5: not an image"):
        load(name)
    assert len(load(name, on_error="skip", val_share=0).train) == 7


def test_hugging_face_needs_its_package_and_leave(monkeypatch):
    with pytest.raises(DataError, match="download=True"):
        load("hf:someone/something")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'metamixer\[hf\]'"):
        load("hf:someone/something")
