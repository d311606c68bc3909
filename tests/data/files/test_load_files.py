"""Files with labels to sets of images: what is held, what stays on disk, and what becomes of damaged ones."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.core.progress import watched_by
from metamixer.data import TensorImages, load
from metamixer.data.errors import DataError
from metamixer.data.files import folder_images
from metamixer.data.files.folder_images import FolderImages
from metamixer.data.files.load_files import DEFAULT_SIZE, NATIVE_SIDE, Reading, read

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


def taken(parts, classes, how):
    """The sets as training wants them, and what was skipped."""
    found = read(parts, classes, how)
    return {part: found.prepare(how)("train", images) for part, images in found.parts.items()}, found.skipped


def test_pixels_and_labels_are_those_of_the_files():
    (train, wanted), (test, also) = parts(40), parts(3, first=90)  # more than a thread takes at once
    sets, skipped = taken({"train": train, "test": test}, CLASSES, Reading())
    assert torch.equal(sets["train"].images, wanted)
    assert torch.equal(sets["test"].images, also)
    assert torch.equal(sets["train"].labels, train[1])
    assert skipped == ()
    assert isinstance(sets["train"], TensorImages)


def test_files_are_remembered_by_their_paths(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(png(number)[0])
    paths = sorted(tmp_path.iterdir())
    sets, _ = taken({"all": (paths, torch.tensor([0, 1, 0, 1]))}, CLASSES, Reading())
    assert sets["all"].files == tuple(paths)


def test_what_does_not_fit_is_read_again_and_again():
    train, wanted = parts(5)
    for limit, kind in ((5 * wanted[0].numel(), TensorImages), (5 * wanted[0].numel() - 1, FolderImages)):
        sets, _ = taken({"train": train}, CLASSES, Reading(cache_limit_bytes=limit))
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
    sets, _ = taken({"train": (files, torch.tensor([0, 1]))}, CLASSES, Reading(image_size=asked))
    assert sets["train"].size == wanted


@pytest.mark.parametrize(("modes", "asked", "wanted"), [("LL", None, 1), ("LR", None, 3), ("LL", 3, 3), ("RR", 1, 1)])
def test_channels(modes, asked, wanted):
    files = [png(number, mode={"L": "L", "R": "RGB"}[mode])[0] for number, mode in enumerate(modes)]
    sets, _ = taken({"train": (files, torch.tensor([0, 1]))}, CLASSES, Reading(channels=asked))
    assert sets["train"].channels == wanted


@pytest.mark.parametrize("cached", [True, False])
def test_damaged_files_are_skipped_and_listed(cached):
    (files, labels), wanted = parts(6)
    files[1] = b"no image"  # seen in the header
    files[4] = files[4][:-40]  # seen only when it is decoded
    how = Reading(on_error="skip", cache_limit_bytes=2**30 if cached else 0)
    sets, skipped = taken({"train": (files, labels)}, CLASSES, how)
    assert torch.equal(sets["train"].fetch(torch.arange(4)), wanted[[0, 2, 3, 5]])
    assert sets["train"].labels.tolist() == [0, 0, 1, 1]
    assert [name for name, _ in skipped] == ["train image 1", "train image 4"]
    assert all(cause and not cause.startswith("train") for _, cause in skipped)


def test_damaged_files_stop():
    (files, labels), _ = parts(9)
    files[2:] = [b"no image"] * 7
    with pytest.raises(DataError, match=r"7 files cannot be read(.|\n)*train image 2: (.|\n)*and 2 more"):
        taken({"train": (files, labels)}, CLASSES, Reading())
    (files, labels), _ = parts(3)
    files[0] = files[0][:-40]
    with pytest.raises(DataError, match=r"1 file cannot be read(.|\n)*train image 0: "):
        taken({"train": (files, labels)}, CLASSES, Reading())


def test_nothing_can_be_read():
    with pytest.raises(DataError, match="none of 2 files can be read; the first, train image 0"):
        taken({"train": ([b"", b"x"], torch.tensor([0, 1]))}, CLASSES, Reading(on_error="skip"))


def test_a_split_of_which_nothing_can_be_read():
    found = read({"train": parts(2)[0], "test": ([b""], torch.tensor([0]))}, CLASSES, Reading(on_error="skip"))
    assert (found.get("test"), found.get("val")) == (None, None)
    assert len(found.get("train")) == 2


@pytest.mark.parametrize(("setting", "value"), [("on_error", "ignore"), ("channels", 0), ("channels", -1)])
def test_settings(setting, value):
    with pytest.raises(DataError, match=setting):
        Reading(**{setting: value})


@pytest.fixture
def root(class_folders):
    class_folders(part="train", count=10)
    return class_folders(part="test", count=4, first=500)


@pytest.fixture
def opened(monkeypatch):
    """The files that were decoded."""
    files = []
    usual = folder_images.read_image
    monkeypatch.setattr(
        folder_images, "read_image", lambda *args, **options: files.append(args[0]) or usual(*args, **options)
    )
    return files


def test_only_the_splits_that_are_wanted_are_decoded(root, opened):
    whole = load(root)
    assert len(opened) == 28
    opened.clear()
    data = load(root, splits=("test",), scale=(whole.mean, whole.std))
    assert (len(opened), {path.parent.parent.name for path in opened}) == (8, {"test"})
    assert (data.mean, data.std) == (whole.mean, whole.std)
    assert isinstance(data.test, TensorImages)
    assert torch.equal(data.test.images, whole.test.images)
    opened.clear()
    for lazy, held in ((data.train, whole.train), (data.val, whole.val)):
        assert isinstance(lazy, FolderImages)
        assert torch.equal(lazy.labels, held.labels)
        assert torch.equal(lazy.fetch(torch.tensor([1, 0])), held.images[[1, 0]])
    assert len(opened) == 4
    opened.clear()
    load(root, splits=(), train_limit=2)
    assert len(opened) == 4  # their mean and deviation are not known


def test_what_is_read_is_watched(root):
    seen = []
    with watched_by(lambda *step: seen.append(step)):
        load(root, val_share=0)
    begun = [(what, total) for what, done, total in seen if done == 0]
    reading = [(what, total) for what in ("decoding images", "reading headers") for total in (8, 20)]
    measuring = [("looking for copies", total) for total in (8, 20)] + [("measuring mean and deviation", 1)]
    assert sorted(begun) == sorted(reading + measuring)
    for total in (8, 20):
        assert [done for what, done, of in seen if (what, of) == ("decoding images", total)] == [*range(total + 1)]


@pytest.mark.parametrize(("bits", "note"), [(12, True), (14, True), (15, False), (16, False)])
def test_few_bits_in_16_bit_files_are_noticed(tmp_path, bits, note):
    values = np.random.default_rng(0).integers(0, 2**bits, (8, 8, 8), np.uint16)
    values[..., 0, 0] = 2**bits - 1
    for number, pixels in enumerate(values):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    dark = load(tmp_path, val_share=0)
    said = [each for each in dark.notes if each.startswith("16-bit images")]
    assert bool(said) == note
    white = 2**bits - 1
    if note:
        assert f"is {white:,}, so that they are dark; data.white={white} makes {white:,} white" in said[0]
    scaled = load(tmp_path, val_share=0, white=white)
    assert not [each for each in scaled.notes if each.startswith("16-bit images")]
    assert int(scaled.train.images.max()) == 255
    want = np.floor(values[0].astype(float) * 255 / white + 0.5)
    both = torch.cat([scaled.train.images, scaled.test.images]) if scaled.test else scaled.train.images
    assert any(np.array_equal(image[0].numpy(), want) for image in both)
    with pytest.raises(DataError, match="white=0; expected a 16-bit value"):
        load(tmp_path, white=0)


@pytest.mark.parametrize("limit", [2**31, 1000])
def test_proportions_by_fit(tmp_path, save, limit):
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[:10], pixels[30:] = (255, 0, 0), (0, 0, 255)
    for name in ("a", "b"):
        for number in range(2):
            save(tmp_path / name / f"{number}.png", pixels=pixels)
    how = {"image_size": (24, 24), "val_share": 0, "cache_limit_bytes": limit}
    fits = ("crop", "letterbox", "squash")
    first = {fit: load(tmp_path, fit=fit, **how).train.fetch(torch.tensor([0]))[0] for fit in fits}
    assert (first["crop"][:, 1:-1] == 0).all()  # of a portrait the middle
    assert (first["letterbox"][:, :, [0, 5, 18, 23]] == 128).all()
    for fit in ("letterbox", "squash"):
        assert first[fit][:, 0, 12].tolist() == [255, 0, 0]
        assert first[fit][:, -1, 12].tolist() == [0, 0, 255]
    assert first["squash"][:, 0, 0].tolist() == [255, 0, 0]
    with pytest.raises(DataError, match="fit='pad'; expected 'crop', 'letterbox' or 'squash'"):
        load(tmp_path, fit="pad")


def test_fit_of_a_set_in_memory():
    wide = load("fashion-mini", image_size=(28, 56), fit="letterbox").test.images[:5]
    plain = load("fashion-mini").test.images[:5]
    assert torch.equal(wide[..., 14:42], plain)
    assert (wide[..., :14] == 128).all()
    squashed = load("fashion-mini", image_size=(14, 28), fit="squash").test.images[:5]
    assert squashed.float().mean() == pytest.approx(plain.float().mean(), abs=1)


def test_images_of_gigabytes_are_refused(root, opened):
    with pytest.raises(DataError, match="image_size=100000x100000: 64,000,000 pixels are the most"):
        load(root, image_size=100_000)
    assert not opened
