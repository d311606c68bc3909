"""Labels from CSV files: right ones for the right images, and a line for each mistake."""

import csv

import pytest
import torch

from metamixer.data import DataError, load


@pytest.fixture
def write(tmp_path):
    """Writes rows as ``data/labels.csv``."""

    def make(rows, header=("file", "label"), name="labels.csv"):
        (tmp_path / "data").mkdir(exist_ok=True)
        with (tmp_path / "data" / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        return tmp_path / "data"

    return make


def rows_of(root, part="train", wrong=("cat/0.png",)):
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(5)]
    other = {"cat": "dog", "dog": "cat"}
    return [(f"{part}/{name}", other[name[:3]] if name in wrong else name[:3]) for name in names]


def test_rows_replace_the_folders_labels_of_training_images(class_folders, write):
    class_folders(part="train")
    root = class_folders(part="test", first=50)
    plain = load(root, val_share=0)
    write(rows_of(root, wrong=("cat/0.png", "dog/3.png")))
    data = load(root, val_share=0, labels="labels.csv")
    assert torch.equal(data.train.images, plain.train.images)
    assert data.train.labels.tolist() == [1, 0, 0, 0, 0, 1, 1, 1, 0, 1]
    assert torch.equal(data.test.labels, plain.test.labels)
    assert "labels of 10 images are those of labels.csv; 2 differ from their folders" in data.notes
    write([*rows_of(root), ("test/dog/4.png", "cat")])
    assert load(root, val_share=0, labels="labels.csv").test.labels.tolist() == [0] * 5 + [1] * 4 + [0]


def test_another_column_and_a_split_column(class_folders, write):
    root = class_folders()
    rows = [(file, label, "dog", "Testing" if file.endswith("4.png") else "training") for file, label in rows_of(root)]
    rows = [(file.removeprefix("train/"), *rest) for file, *rest in rows]
    write(rows, header=("file", "label", "all_dogs", "split"))
    data = load(root, val_share=0, labels="labels.csv")
    assert (len(data.train), len(data.test)) == (8, 2)
    with pytest.raises(DataError, match="of 'cat' no training image"):
        load(root, val_share=0, labels="labels.csv", labels_column="all_dogs")


@pytest.mark.parametrize("by_file", [False, True])
def test_without_class_folders_the_rows_are_the_images(save, tmp_path, write, by_file):
    names = [f"{number}.png" for number in range(20)]
    for number, name in enumerate(names):
        save(tmp_path / "data" / "scans" / name, seed=number)
    rows = [(f"scans/{name}", "ba"[number % 2]) for number, name in enumerate(names)]
    if by_file:
        write(rows[:16], name="train.csv")
        root = write(rows[16:], name="test.csv")
        data = load(root, val_share=0, labels=["train.csv", "test.csv"])
        assert data.train.labels.tolist() == [1, 0] * 8
        assert data.test.labels.tolist() == [1, 0] * 2
    else:
        data = load(write(rows), labels="labels.csv")
        assert (len(data.train), len(data.val), len(data.test)) == (16, 2, 2)
    assert data.classes == ("a", "b")


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([("train/cat/9.png", "cat")], None, "1 file not found, such as 'train/cat/9.png'"),
        ([("train/cat/0.png", "cat")] * 2, None, r"line 3: train/cat/0\.png is named twice"),
        ([("train/cat/0.png", "cow")], None, "the classes 'cow' do not exist; there are 'cat', 'dog'"),
        ([("train/cat/0.png", "cat")], None, "9 training images without a row, such as 'train/cat/1.png'"),
        ([("../cat/0.png", "cat")], None, "a path inside of"),
        ([("train/cat/0.png", "")], None, "has no label"),
        ([], None, "no rows"),
        ([("x", "y")], ("name", "label"), "columns are 'name', 'label'; 'file' is expected"),
        ([("x", "y")], ("file", "class"), r"'label' is expected or another one by data\.labels_column"),
        ([("train/cat/0.png", "cat", "later")], ("file", "label", "split"), "split 'later'; train, training"),
    ],
)
def test_mistakes_are_named(class_folders, write, rows, header, words):
    root = class_folders(part="train")
    write(rows, header or ("file", "label"))
    with pytest.raises(DataError, match=words):
        load(root, labels="labels.csv")


def test_no_file_and_no_folder(class_folders, tmp_path):
    with pytest.raises(DataError, match=r"no such file; data\.labels is a path in the data folder"):
        load(class_folders(), labels="gone.csv")
    with pytest.raises(DataError, match=r"data\.labels with 'fashion-mini'; a folder of images is expected"):
        load("fashion-mini", labels="labels.csv")
