"""Boxes from a file, and what a network sees of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import DataError, FolderImages, load
from metamixer.data.files.sharded import Shards
from metamixer.evaluation.localization.boxes import files_of, place_of, read_boxes, through_crop
from tests.shards import shards

LABELS = ("cat", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 60 x 40 with a white rectangle at x 20..40, y 10..30 on black."""
    root = tmp_path_factory.mktemp("pets")
    for part in ("train", "test"):
        for label in LABELS:
            for number in range(5):
                pixels = np.zeros((40, 60), dtype=np.uint8)
                pixels[10:30, 20:40] = 255
                file = root / part / label / "deep" / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
    return root


def written(tmp_path, *lines, header="file,x0,y0,x1,y1"):
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("limit", [2**31, 0])
def test_boxes_follow_the_image_through_crop_and_resize(folder, tmp_path, limit):
    data = load(folder, image_size=20, val_share=0.2, cache_limit_bytes=limit)
    assert isinstance(data.test, FolderImages) == (limit == 0)
    path = written(tmp_path, "dog/deep/3.png,20,10,40,30", "cat/deep/0.png,20,10,30,20", "cat/deep/0.png,30,20,40,30")
    boxes = read_boxes(path, data.test, Path(data.name))
    assert [len(box) for box in boxes] == [2, 0, 0, 0, 0, 0, 0, 0, 1, 0]
    # the middle 40 x 40 are kept and halved
    assert boxes[8].tolist() == [[5.0, 5.0, 15.0, 15.0]]
    assert boxes[0].tolist() == [[5.0, 5.0, 10.0, 10.0], [10.0, 10.0, 15.0, 15.0]]
    image = data.test.fetch(torch.tensor([8]))[0, 0]
    y, x = (image > 127).nonzero().unbind(1)
    assert [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1] == [5, 5, 15, 15]


def test_held_out_images_keep_their_files(folder, tmp_path):
    data = load(folder, val_share=0.2, train_limit=2)
    for part, images in (("train", data.train), ("train", data.val), ("test", data.test)):
        files = files_of(images)
        assert len(files) == len(images)
        for file, label in zip(files, images.labels.tolist(), strict=True):
            assert file.parts[-4:-1] == (part, LABELS[label], "deep")
    path = written(tmp_path, *(f"{label}/deep/{number}.png,0,0,60,40" for label in LABELS for number in range(5)))
    assert [len(box) for box in read_boxes(path, data.val, Path(data.name))] == [1] * len(data.val)


def test_a_folder_without_splits(folder, tmp_path):
    data = load(folder / "train", val_share=0.2)
    row = 0
    file = files_of(data.test)[row]
    place = place_of(file, folder / "train", LABELS[int(data.test.labels[row])])
    path = written(tmp_path, f"{place.as_posix()},1,2,3,4", *(f"cat/deep/{n}.png,1,2,3,4" for n in range(5)))
    assert read_boxes(path, data.test, folder / "train")[row][0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_what_is_cut_off_is_left_out():
    assert through_crop((0, 0, 9, 40), (40, 60), (20, 20)) is None
    assert through_crop((0, 0, 20, 40), (40, 60), (20, 20)) == [0, 0, 5, 20]
    assert through_crop((3, 4, 5, 6), (40, 60), (40, 60)) == [3, 4, 5, 6]
    assert through_crop((0, 10, 10, 50), (60, 10), (10, 10)) == pytest.approx([0, 0, 10, 10])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat/deep/0.png,0,0,61,40"], r"line 2: the box 0,0,61,40 is outside of 'cat/deep/0.png', 60 x 40"),
        (["cat/deep/0.png,-1,0,61,40"], "line 2: the box -1,0"),
        (["cat/deep/0.png,1,1,2,2", "cat/deep/0.png,5,0,5,4"], "line 3: 5,0,5,4 is not a box; expected x0 < x1"),
        (["cat/deep/0.png,0,0,nan,4"], "line 2: 0,0,nan,4 is not a box"),
        (["cat/deep/0.png,0,0,a,4"], "line 2: '0,0,a,4' are not four numbers"),
        (["cat/deep/0.png,0,0,4"], "line 2: 4 cells; expected 5"),
        (["", "cat/deep/9.png,0,0,4,4"], r"line 3: 'cat/deep/9.png' is not in .*test"),
        ([f"x{row},0,0,1,1" for row in range(8)], r"8 wrong lines\n(.*\n){5}.*and 3 more"),
    ],
)
def test_errors_name_the_line(folder, tmp_path, lines, message):
    data = load(folder)
    with pytest.raises(DataError, match=message):
        read_boxes(written(tmp_path, *lines), data.test, Path(data.name))


def test_errors_of_the_file(folder, tmp_path):
    data = load(folder)
    with pytest.raises(DataError, match=r"nowhere\.csv: No such file"):
        read_boxes(tmp_path / "nowhere.csv", data.test, folder)
    with pytest.raises(DataError, match="'file,x,y,w,h'; expected 'file,x0,y0,x1,y1'"):
        read_boxes(written(tmp_path, header="file,x,y,w,h"), data.test, folder)
    with pytest.raises(DataError, match="these images are not files"):
        read_boxes(written(tmp_path), load("fashion-mini").test, folder)
    (tmp_path / "boxes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no CSV in UTF-8"):
        read_boxes(tmp_path / "boxes.csv", data.test, folder)


def test_images_of_shards_have_no_files_and_are_not_all_read_to_find_that(tmp_path, monkeypatch):
    shards(tmp_path / "data")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, seen = load(f"wds:{tmp_path}/data/*.tar").train, []
    read = Shards.__getitem__
    monkeypatch.setattr(Shards, "__getitem__", lambda self, row: seen.append(row) or read(self, row))
    assert files_of(images) is None
    assert len(seen) == 1
