"""A set of images on disk: what it reads, and what it is without reading anything."""

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import DataError, FolderImages, ImageError, TrainLoader, load
from metamixer.data.augment import Augment


@pytest.fixture
def data(class_folders):
    class_folders(count=12, part="train", size=(20, 26))
    return load(class_folders(count=5, part="test", size=(20, 26), first=500), cache_limit_bytes=1000, image_size=16)


def pixels(path, box):
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB").crop(box)))


def test_a_crop_of_the_size_of_the_images_is_those_pixels(data):
    images = data.train
    rows = torch.tensor([5, 0, 5])
    found = images.crops(rows, [lambda width, height: (2.0, 3.0, 18.0, 19.0)] * 3)
    assert (found.shape, found.dtype) == ((3, 3, 16, 16), torch.uint8)
    wanted = [pixels(images.files[row], (2, 3, 18, 19)).permute(2, 0, 1) for row in images.rows[rows].tolist()]
    assert torch.equal(found, torch.stack(wanted))


def test_a_part_of_a_set_reads_the_files_of_its_images(data):
    rows = torch.tensor([4, 1, 2])
    part = data.train.subset(rows)
    assert torch.equal(part.fetch(torch.arange(3)), data.train.fetch(rows))
    assert torch.equal(part.labels, data.train.labels[rows])
    assert part.needed(torch.tensor([0, 2]), None, torch.tensor([0]), crop=False) == sorted(
        data.train.rows[torch.tensor([4, 2])].tolist()
    )
    assert part.to("cpu") is part


def test_labels_that_do_not_fit_are_refused(data):
    images = data.train
    with pytest.raises(DataError, match="label"):
        FolderImages(images.files, images.rows, images.labels[:-1], images.classes, 3, (16, 16))


def test_a_damaged_file_is_named(data, tmp_path):
    path = tmp_path / "data" / "train" / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=r"cat/3\.png: damaged"):
        data.train.fetch(torch.arange(len(data.train)))


def test_a_damaged_file_is_skipped_before_training(data, tmp_path):
    path = tmp_path / "data" / "train" / "cat" / "3.png"
    path.write_bytes(path.read_bytes()[:-100])
    skipping = load(tmp_path / "data", cache_limit_bytes=1000, image_size=16, on_error="skip", val_share=0)
    assert isinstance(skipping.train, FolderImages)
    assert len(skipping.train) == 23
    assert [name for name, _ in skipping.skipped] == [str(path)]
    read = TrainLoader(skipping.train, Augment(0), skipping.mean, skipping.std, 1, seed=0)
    assert len(list(read.epoch(0))) == 23
