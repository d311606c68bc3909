"""Hugging Face data sets: saved to disk, as folders of tables, and damaged ones."""

import shutil
import sys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import DataError, load

RNG = np.random.default_rng(0)


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
    assert "1 image of test without a label left out" in data.notes
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


def test_images_of_a_set_are_stored_in_the_cache_once(tmp_path, monkeypatch):
    """Known by the set's fingerprint and their place; another set in the same folder is another one."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    options = {"cache": tmp_path / "cache", "cache_limit_bytes": 0, "image_size": 8, "val_share": 0}
    folder = tmp_path / "tables"
    folder.mkdir()

    def write(seed):
        draw = np.random.default_rng(seed)
        content = []
        for _ in range(12):
            file = BytesIO()
            Image.fromarray(draw.integers(0, 256, (9, 9, 3), np.uint8)).save(file, "PNG")
            content.append({"bytes": file.getvalue(), "path": None})
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
        made = datasets.Dataset.from_dict({"image": content, "label": [0, 1] * 6}, features=features)
        made.to_parquet(folder / "train-00000-of-00001.parquet")

    seen = []
    for seed in (0, 1):
        write(seed)
        for _ in range(2):
            plain, data = load(folder, **options | {"cache": "off"}), load(folder, **options)
            assert torch.equal(data.train.fetch(torch.arange(12)), plain.train.fetch(torch.arange(12)))
            seen.append(len(list((tmp_path / "cache").rglob("*.shard"))))
    assert seen == [1, 1, 2, 2]


def test_a_library_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "datasets.py").write_text("raise ImportError('pyarrow requires NumPy 2.0 or newer')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    with pytest.raises(DataError, match=r"which cannot be imported here \(pyarrow requires NumPy 2.0 or newer\): pip"):
        load("hf:someone/something", download=True)
