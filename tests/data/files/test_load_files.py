"""Files with labels to sets of images: what is held, what stays on disk, and what becomes of damaged ones."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import TensorImages
from metamixer.data.errors import DataError
from metamixer.data.files.load_files import DEFAULT_SIZE, NATIVE_SIDE, Reading, present, read
from metamixer.data.files.streaming import FolderImages

CLASSES = ("a", "b")


def png(seed=0, size=(8, 6), mode="RGB"):
    """The content of a file, and its pixels ``(C, H, W)``."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, *(() if mode == "L" else (3,))), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), torch.from_numpy(pixels if mode == "RGB" else pixels[..., None]).permute(2, 0, 1)


def parts(count=5, first=0, **options):
    made = [png(first + number, **options) for number in range(count)]
    return ([content for content, _ in made], torch.arange(count) % 2), torch.stack([pixels for _, pixels in made])


def test_pixels_and_labels_are_those_of_the_files():
    (train, wanted), (test, also) = parts(40), parts(3, first=90)  # more than a thread takes at once
    sets, skipped = read({"train": train, "test": test}, CLASSES, Reading())
    assert torch.equal(sets["train"].images, wanted)
    assert torch.equal(sets["test"].images, also)
    assert torch.equal(sets["train"].labels, train[1])
    assert skipped == ()
    assert isinstance(present(sets, "train"), TensorImages)
    assert present(sets, "val") is None


def test_files_are_remembered_by_their_paths(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number)[0])
    paths = sorted(tmp_path.iterdir())
    sets, _ = read({"all": (paths, torch.tensor([0, 1, 0, 1]))}, CLASSES, Reading())
    assert sets["all"].files == tuple(paths)


def test_what_does_not_fit_is_read_again_and_again():
    train, wanted = parts(5)
    for limit, kind in ((5 * wanted[0].numel(), TensorImages), (5 * wanted[0].numel() - 1, FolderImages)):
        sets, _ = read({"train": train}, CLASSES, Reading(cache_limit_bytes=limit))
        assert isinstance(sets["train"], kind)
        assert torch.equal(sets["train"].fetch(torch.tensor([3, 1])), wanted[[3, 1]])
        assert sets["train"].labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("sizes", "asked", "wanted"),
    [
        ([(8, 6)] * 2, None, (8, 6)),
        ([(8, 6), (6, 8)], None, DEFAULT_SIZE),
        ([(NATIVE_SIDE + 1, 8)] * 2, None, DEFAULT_SIZE),
        ([(NATIVE_SIDE, 8)] * 2, None, (NATIVE_SIDE, 8)),
        ([(8, 6), (6, 8)], (5, 4), (5, 4)),
    ],
)
def test_size(sizes, asked, wanted):
    files = [png(number, size)[0] for number, size in enumerate(sizes)]
    sets, _ = read({"train": (files, torch.tensor([0, 1]))}, CLASSES, Reading(image_size=asked))
    assert sets["train"].size == wanted


@pytest.mark.parametrize(("modes", "asked", "wanted"), [("LL", None, 1), ("LR", None, 3), ("LL", 3, 3), ("RR", 1, 1)])
def test_channels(modes, asked, wanted):
    files = [png(number, mode={"L": "L", "R": "RGB"}[mode])[0] for number, mode in enumerate(modes)]
    sets, _ = read({"train": (files, torch.tensor([0, 1]))}, CLASSES, Reading(channels=asked))
    assert sets["train"].channels == wanted


@pytest.mark.parametrize("cached", [True, False])
def test_damaged_files_are_skipped_and_listed(cached):
    (files, labels), wanted = parts(6)
    files[1] = b"no image"  # seen in the header
    files[4] = files[4][:-40]  # seen only when it is decoded
    how = Reading(on_error="skip", cache_limit_bytes=2**30 if cached else 0)
    sets, skipped = read({"train": (files, labels)}, CLASSES, how)
    assert torch.equal(sets["train"].fetch(torch.arange(4)), wanted[[0, 2, 3, 5]])
    assert sets["train"].labels.tolist() == [0, 0, 1, 1]
    assert [name for name, _ in skipped] == ["train image 1", "train image 4"]
    assert all(cause and not cause.startswith("train") for _, cause in skipped)


def test_damaged_files_stop():
    (files, labels), _ = parts(9)
    files[2:] = [b"no image"] * 7
    with pytest.raises(DataError, match=r"7 files cannot be read(.|\n)*train image 2: (.|\n)*and 2 more"):
        read({"train": (files, labels)}, CLASSES, Reading())
    (files, labels), _ = parts(3)
    files[0] = files[0][:-40]
    with pytest.raises(DataError, match=r"1 files cannot be read(.|\n)*train image 0: "):
        read({"train": (files, labels)}, CLASSES, Reading())


def test_nothing_can_be_read():
    with pytest.raises(DataError, match="none of 2 files can be read; the first, train image 0"):
        read({"train": ([b"", b"x"], torch.tensor([0, 1]))}, CLASSES, Reading(on_error="skip"))


def test_a_split_of_which_nothing_can_be_read():
    sets, _ = read({"train": parts(2)[0], "test": ([b""], torch.tensor([0]))}, CLASSES, Reading(on_error="skip"))
    assert present(sets, "test") is None


@pytest.mark.parametrize(("setting", "value"), [("on_error", "ignore"), ("channels", 2), ("channels", 4)])
def test_settings(setting, value):
    with pytest.raises(DataError, match=setting):
        Reading(**{setting: value})
