"""Tar shards as data: splits, classes, what is odd, and the same images as from a folder."""

import io
from pathlib import Path

import pytest
import torch

from metamixer.data import DataError, check, load
from metamixer.data.sources.webdataset import split_shards
from tests.shards import pack, picture, samples, shards


@pytest.fixture
def wds(tmp_path):
    """Loads shards of the folder ``data``."""

    def make(names="*.tar", **options):
        return load(f"wds:{tmp_path}/data/{names}", cache=tmp_path / "cache", cache_writes=False, **options)

    return make


def test_splits_by_name(wds, tmp_path):
    shards(tmp_path / "data")
    shards(tmp_path / "data", (12,), "valid", first=200)
    shards(tmp_path / "data", (9,), "test", first=300)
    data = wds()
    assert [len(part) for part in (data.train, data.val, data.test)] == [95, 12, 9]
    assert data.classes == ("cat", "dog", "emu")
    assert (data.size, data.channels) == ((8, 8), 3)
    assert "size and channels are those of 53 images of 116" in data.notes
    data = wds("{train-{00..01},test-00}.tar", val_share=0.2, train_limit=10, image_size=6, channels=1)
    assert [len(part) for part in (data.train, data.val, data.test)] == [30, 11, 9]
    assert (data.size, data.channels) == ((6, 6), 1)
    assert not [note for note in data.notes if "size and channels" in note]


def test_the_same_pixels_as_from_a_folder(wds, tmp_path, shared_data, cifar_folder):
    """CIFAR-10, packed in another order."""
    files = sorted((cifar_folder / "train").rglob("*.jpg"), key=lambda path: path.name)
    for number in range(0, len(files), 50):
        rows = [(each, f"{each.parent.name}-{each.stem}") for each in files[number : number + 50]]
        members = [
            pair for each, key in rows for pair in ((f"{key}.jpg", each.read_bytes()), (f"{key}.cls", each.parent.name))
        ]
        pack(tmp_path / "data" / f"{number:03d}.tar", members)
    data, plain = wds(val_share=0.0), load(cifar_folder, val_share=0.0)
    assert data.classes == plain.classes
    assert len(data.train) == len(plain.train) == 140
    wanted = {path: number for number, path in enumerate(plain.train.files)}
    order = torch.tensor([wanted[each] for each in files])
    everything = torch.arange(140)
    assert torch.equal(data.train.fetch(everything), plain.train.fetch(order))
    assert torch.equal(data.train.labels, plain.train.labels[order])
    assert data.mean + data.std == pytest.approx(plain.mean + plain.std)


def test_numbers_are_classes_in_their_order(wds, tmp_path):
    shards(tmp_path / "data", label=lambda number: (10, 9, 2)[number % 3])
    shards(tmp_path / "data", (6,), "val", label=lambda number: (10, 2)[number % 2])
    data = wds()
    assert data.classes == ("2", "9", "10")
    assert data.val.labels.tolist() == [2, 0] * 3
    pack(tmp_path / "data" / "train-03.tar", samples(500, 3, label=lambda _: "owl"))
    assert wds().classes == ("10", "2", "9", "owl")


def test_a_class_that_train_lacks(wds, tmp_path):
    shards(tmp_path / "data")
    shards(tmp_path / "data", (6,), "test", label=lambda _: "owl")
    with pytest.raises(DataError, match="test has 'owl', not among the classes of train: 'cat', 'dog', 'emu'"):
        wds()


def test_names_of_splits(tmp_path):
    def parts(*names):
        return {part: [Path(name).name for name in found] for part, found in split_shards("wds:x", names).items()}

    assert parts("s3://b/test/train/0.tar", "s3://b/test/val/1.tar") == {"train": ["0.tar"], "val": ["1.tar"]}
    assert parts("/test/0.tar", "/test/1.tar") == {"train": ["0.tar", "1.tar"]}
    assert parts("imagenet-train-000.tar", "imagenet_validation_0.tar", "x/test/0.tar") == {
        "train": ["imagenet-train-000.tar"], "val": ["imagenet_validation_0.tar"], "test": ["0.tar"],
    }  # fmt: skip
    assert parts("retrain-0.tar", "contest-0.tar") == {"train": ["retrain-0.tar", "contest-0.tar"]}
    with pytest.raises(DataError, match=r"'extra\.tar' say no split, others say train"):
        parts("train.tar", "extra.tar")


def test_what_is_wrong_stops_or_is_skipped(wds, tmp_path):
    broken = [("b.png", picture(0)), ("c.cls", "cat"), ("d.png", picture(1)[:90]), ("d.cls", "dog")]
    pack(tmp_path / "data" / "train-0.tar", [*samples(0, 60), *broken])
    cut = pack(tmp_path / "data" / "train-1.tar", samples(100, 20))
    cut.write_bytes(cut.read_bytes()[:9000])
    with pytest.raises(DataError) as found:
        wds()
    said = str(found.value)
    assert said.startswith("3 files cannot be read")
    assert "train-0.tar: b: no label" in said
    assert "train-0.tar: c: no image" in said
    assert "train-1.tar: is damaged or cut off" in said
    data = wds(on_error="skip", val_share=0.0)
    whole = len(data.train) - 60
    assert 0 < whole < 20
    assert sorted(name for name, _ in data.skipped) == [
        "train-0.tar: b",
        "train-0.tar: c",
        "train-0.tar: d",
        "train-1.tar",
    ]
    known = wds(skipped=[name for name, _ in data.skipped], val_share=0.0)
    assert torch.equal(known.train.rows, data.train.rows)
    assert known.skipped == ()


def test_names_of_samples_cannot_write_to_the_terminal(wds, tmp_path):
    odd = "a\x1b[2J\udcff"
    bad = [(f"{odd}.png", picture(0)[:100]), (f"{odd}.cls", "cat"), (f"{odd}2.png", b"x")]
    pack(tmp_path / "data" / "train-0.tar", [*samples(0, 9), *bad])
    with pytest.raises(DataError, match=r"train-0\.tar: a\\x1b\[2J\\udcff2: no label"):
        wds()
    data = wds(on_error="skip", val_share=0.0)
    assert [name for name, _ in data.skipped] == [f"train-0.tar: a\\x1b[2J\\udcff{end}" for end in ("2", "")]
    known = wds(skipped=[name for name, _ in data.skipped], val_share=0.0)
    assert len(known.train) == len(data.train) == 9


def test_shards_that_go_by_class_are_noted(wds, tmp_path):
    for number, name in enumerate("abcdefgh"):
        pack(tmp_path / "data" / f"{name}.tar", samples(40 * number, 40, label=lambda _, name=name: name))
    (note,) = [note for note in wds(buffer=40).notes if "buffer" in note]
    assert note.startswith("a buffer of 40 images has 1 of 8 classes, drawn from all images it would have ")
    assert not [note for note in wds(buffer=400).notes if "buffer" in note]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("wds:{here}/*.tgz", {}, "no such shards; a pattern such as"),
        ("wds:{here}/{{0..2}}.tar", {}, "3 of 3 shards are not there"),
        ("wds:{here}/data/*.tar", {"labels": "x.csv"}, "a folder of images is expected"),
        ("scenes:wds:{here}/data/*.tar", {}, "scenes are made of images in memory"),
        ("wds:{here}/empty.tar", {}, "the training shards hold no samples"),
        ("wds:{here}/one.tar", {}, "1 class is nothing to learn"),
    ],
)
def test_what_cannot_be_loaded_says_so(tmp_path, name, options, said):
    shards(tmp_path / "data")
    pack(tmp_path / "empty.tar", [])
    pack(tmp_path / "one.tar", samples(0, 4, label=lambda _: "cat"))
    with pytest.raises(DataError, match=said.replace(".", r"\.")):
        load(name.format(here=tmp_path), cache=tmp_path / "cache", cache_writes=False, **options)


def test_check_looks_at_folders(tmp_path):
    with pytest.raises(DataError, match="expected a folder of images"):
        check("wds:x/*.tar")


def test_one_colour_depth_for_all(wds, tmp_path):
    from PIL import Image

    grey = io.BytesIO()
    Image.new("L", (8, 8), 7).save(grey, "PNG")
    pack(tmp_path / "data" / "0.tar", [*samples(0, 9), ("x.png", grey.getvalue()), ("x.cls", "cat")])
    assert wds(val_share=0.0).train.fetch(torch.tensor([9])).unique().tolist() == [7]
