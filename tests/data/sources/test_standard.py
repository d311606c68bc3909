"""The standard sets from files that one has, whole and damaged."""

import gzip
import hashlib
import struct
from types import SimpleNamespace

import numpy as np
import pytest

from metamixer.data import DataError, load

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
