"""Folders of images as people have them."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.config.recipe import Recipe
from metamixer.data import DataError, TensorImages, check, load

NASTY = (
    "Grün Ünïcode 猫",
    "with space ",
    "a" * 200,
    "$HOME $x^2$",
    "[red][bold]",
    "<script>alert(1)<script>",
    "tab\tnew\nline\x1b[31m",
    "quote\"'`",
    "-rf",
    "{braces} %s {0}",
    "comma, semicolon; |",
)


def test_splits_as_given(class_folders):
    for number, part in enumerate(("train", "valid", "test")):
        root = class_folders(("cat", "dog"), count=4 - number, part=part, first=100 * number)
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 6, 4]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 4
    first = np.array(Image.open(root / "train" / "cat" / "0.png")).transpose(2, 0, 1)
    assert np.array_equal(data.train.images[0].numpy(), first)
    assert (data.size, data.channels) == ((8, 8), 3)
    assert data.notes == data.skipped == ()


def test_validation_is_held_out_of_train_and_never_of_test(class_folders):
    class_folders(count=10, part="train")
    root = class_folders(count=10, part="test", first=500)
    data = load(root, val_share=0.2)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 20]
    assert load(root, val_share=0).val is None
    assert len(load(root, train_limit=3).train) == 6


def test_one_folder_of_classes_is_split_with_the_same_test_images_for_every_seed(class_folders):
    root = class_folders(count=20)
    one, two = load(root, seed=1), load(root, seed=2)
    assert [len(part) for part in (one.train, one.val, one.test)] == [32, 4, 4]
    assert torch.equal(one.test.images, two.test.images)
    assert not torch.equal(one.val.images, two.val.images)
    together = torch.cat([part.images.flatten(1) for part in (one.train, one.val, one.test)])
    assert len(together.unique(dim=0)) == 40


def test_a_class_called_train_is_a_class(class_folders):
    root = class_folders(("bus", "train"), count=4)
    assert load(root).classes == ("bus", "train")
    class_folders(("test",), count=4)
    with pytest.raises(DataError, match=r"'test', 'train' look like splits.*data\.layout=classes"):
        load(root)
    assert load(root, layout="classes").classes == ("bus", "test", "train")
    with pytest.raises(DataError, match=r"layout='splits'; expected 'auto' or 'classes'"):
        load(root, layout="splits")


@pytest.mark.parametrize(
    "names",
    [("Train", "Test"), ("Training", "Testing"), ("training_set", "test_set"), ("TRAIN", "dev"), ("train-imgs", "val")],
)
def test_splits_go_by_their_usual_names(class_folders, names):
    for number, part in enumerate(names):
        root = class_folders(part=part, first=100 * number)
    data = load(root, val_share=0)
    other = data.test if "test" in names[1].lower() else data.val
    assert (data.classes, len(data.train), len(other)) == (("cat", "dog"), 10, 10)


def test_two_folders_of_one_split_are_refused(class_folders):
    class_folders(part="train")
    class_folders(part="test")
    with pytest.raises(DataError, match="'Testing' and 'test' are both the test split"):
        load(class_folders(part="Testing"))


@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_too_many_around_the_splits(class_folders, tmp_path, save, beside):
    for part in ("train", "test"):
        class_folders(part=part, root=tmp_path / "data" / "photos")
    if beside:
        save(tmp_path / "data" / "other" / "0.png")
    with pytest.raises(DataError, match=r"'photos' holds the splits 'test', 'train'; expected .*data/photos"):
        load(tmp_path / "data")
    assert load(tmp_path / "data" / "photos").classes == ("cat", "dog")


def test_a_folder_too_many_around_the_classes(class_folders, tmp_path, save):
    root = tmp_path / "data"
    class_folders(root=root / "2019", count=10)
    with pytest.raises(DataError, match=r"one class, '2019'.* 'cat', 'dog' are the classes, name .*data/2019"):
        load(root)
    class_folders(root=root / "2020", first=50, count=10)
    with pytest.raises(DataError, match=r"each of '2019', '2020' holds the same folders, 'cat', 'dog'"):
        load(root)
    assert load(root, layout="classes").classes == ("2019", "2020")
    for name in ("a", "b"):  # as Tiny ImageNet has it
        save(tmp_path / "tiny" / name / "images" / "0.png")
    assert load(tmp_path / "tiny", val_share=0).classes == ("a", "b")


def test_runs_are_no_data(class_folders, tmp_path, save):
    root = class_folders(count=10)
    before = load(root)
    for place in (root / "runs" / "cats-dml", root / "cat" / "run"):
        save(place / "plots" / "accuracy.png", size=(20, 20))
        (place / "recipe.yaml").write_text(Recipe().as_yaml())
    (root / "runs" / "loose.csv").write_text("")
    after = load(root)
    assert after.classes == ("cat", "dog")
    assert torch.equal(before.train.images, after.train.images)
    assert "ignored: 1 not an image, 2 run folders" in after.notes
    save(root / "soup" / "recipe.png", seed=5)
    (root / "soup" / "recipe.yaml").write_text("water: 2 l")
    assert load(root).classes == ("cat", "dog", "soup")


def test_names_in_two_unicode_forms_are_one(class_folders, tmp_path):
    class_folders(("caf\u00e9", "dog"), part="train")
    root = class_folders(("cafe\u0301", "dog"), part="test", first=60)
    assert load(root, val_share=0).test.labels.tolist() == [0] * 5 + [1] * 5
    class_folders(("cafe\u0301",), part="train", first=70)
    with pytest.raises(DataError, match=r"'caf\\xe9' are one name in two Unicode forms"):
        load(root)


def test_what_is_left_out_is_reported_by_suffix_and_place(class_folders, save):
    class_folders(part="train")
    root = class_folders(part="val", first=40)
    for number in range(6):
        save(root / "test" / f"{number}.png", seed=number)
        (root / "train" / "cat" / f"{number}.xcf").write_bytes(b"x")
    (note,) = [note for note in load(root).notes if note.startswith("ignored")]
    assert note == (
        "ignored: 6 images outside of class folders (.png 6; in test 6), 6 not images (.xcf 6; in train/cat 6)"
    )


def test_what_is_hidden_or_no_image_is_left_out(class_folders, save):
    root = class_folders(count=4)
    (root / "notes.txt").write_text("words")
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "cat" / "._0.png").write_bytes(b"x")
    (root / "cat" / "list.csv").write_text("a,b")
    save(root / ".ipynb_checkpoints" / "0.png")
    save(root / "dog" / ".cache" / "0.png")
    save(root / "dog" / "2021" / "may" / "9.PNG", seed=77)
    data = load(root, val_share=0)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.test) == 9
    assert "ignored: 4 hidden, 2 not images" in data.notes


def test_links_are_followed_but_not_in_circles(class_folders, tmp_path, save):
    root = class_folders(count=4)
    save(tmp_path / "elsewhere" / "9.png", seed=9)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    data = load(root, val_share=0)
    assert len(data.train) + len(data.test) == 9


@pytest.mark.parametrize("part", ["", "train"])
def test_layouts_that_cannot_work_are_refused(class_folders, tmp_path, part):
    root = tmp_path / "data"
    with pytest.raises(DataError, match="no such folder"):
        load(root)
    (root / part).mkdir(parents=True)
    with pytest.raises(DataError, match="no class folders; it holds nothing"):
        load(root)
    (root / part / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"it holds 'a\.png'"):
        load(root)
    class_folders(("cat",), part=part)
    with pytest.raises(DataError, match="one class, 'cat', is nothing to learn"):
        load(root)
    (root / part / "dog").mkdir()
    with pytest.raises(DataError, match="no image in 'dog'"):
        load(root)


def test_a_test_folder_beside_classes_is_no_class(class_folders, save):
    root = class_folders(("a", "b"))
    for name in ("test", "Test_images", "test1"):
        for number in range(5):
            save(root / name / f"{number}.png", seed=90 + number)
        with pytest.raises(DataError, match=f"'{name}' looks like test images beside 2 classes"):
            load(root)
        assert load(root, layout="classes").classes == tuple(sorted(("a", "b", name)))
        shutil.rmtree(root / name)
    assert load(class_folders(("test-A", "test-B"))).classes == ("a", "b", "test-A", "test-B")  # several are classes
    shutil.rmtree(root)
    assert load(class_folders(("control", "test"))).classes == ("control", "test")


def test_splits_must_agree(class_folders, tmp_path):
    root = class_folders(part="train")
    class_folders(("cat", "cow", "dog"), part="val", first=50)
    with pytest.raises(DataError, match=r"val: has 'cow', not among the classes of .*train: 'cat', 'dog'"):
        load(root)
    class_folders(part="validation")
    with pytest.raises(DataError, match="both the validation split"):
        load(root)
    with pytest.raises(DataError, match="no 'train' folder"):
        load(class_folders(part="test", root=tmp_path / "second"))


def test_a_class_that_a_split_lacks_is_noted(class_folders):
    class_folders(("a", "b", "c"), part="train")
    data = load(class_folders(("b",), part="test", first=90))
    assert data.test.labels.tolist() == [1] * 5
    assert "test has no image of 'a', 'c'" in data.notes


def test_nasty_class_names_go_through(class_folders):
    root = class_folders(NASTY, count=3)
    data = load(root)
    assert set(data.classes) == set(NASTY)
    (root / "cat\x1b[31m").mkdir()
    with pytest.raises(DataError) as caught:
        load(root)
    assert "\x1b" not in str(caught.value)


def test_damaged_files_stop_or_are_skipped_and_listed(class_folders):
    root = class_folders(count=6)
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "0.png").write_bytes(whole[:-40])
    (root / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 file cannot be read.*on_error='skip'(?s:.*)dog/1\.png: empty"):
        load(root)
    (root / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"(?s)1 file .*cat/0\.png: damaged: "):
        load(root)
    (root / "dog" / "1.png").write_bytes(b"")
    data = load(root, on_error="skip", val_share=0)
    assert sorted(os.path.basename(name) for name, _ in data.skipped) == ["0.png", "1.png"]
    assert len(data.train) + len(data.test) == 10
    assert "2 files skipped that cannot be read" in data.notes
    assert (data.train.images.flatten(1) > 0).any(1).all()
    for path in (root / "dog").iterdir():
        path.write_bytes(b"no")
    with pytest.raises(DataError, match="of 'dog' no training image can be read"):
        load(root, on_error="skip")


def test_check_reports_every_file(class_folders):
    root = class_folders(count=4)
    (root / "cat" / "1.png").write_bytes((root / "cat" / "1.png").read_bytes()[:-40])
    (root / "cat" / "2.png").write_bytes(b"words")
    (root / "cat" / "gone.png").symlink_to(root / "nothing")
    (root / "cat" / "x.jpg").mkdir()
    (root / ".hidden").mkdir()
    report = check(root)
    codes = {f"{file.label}/{file.path.name}": file.code for file in report.files}
    want = {f"{name}/{number}.png": "ok" for name in ("cat", "dog") for number in range(4)}
    want |= {"cat/1.png": "broken", "cat/2.png": "not-an-image", "cat/gone.png": "missing", "cat/x.jpg": "folder"}
    assert codes == want
    assert report.counts == {("all", "cat"): 2, ("all", "dog"): 4}
    assert all(file.cause for file in report.bad)
    assert report.files[0].shape == (3, 8, 8)
    assert [path.name for path in report.ignored] == [".hidden"]


def test_size_and_channels(class_folders, save):
    root = class_folders(count=4, mode="L", size=(20, 12))
    data = load(root)
    assert (data.size, data.channels) == ((20, 12), 1)
    assert load(root, channels=3, image_size=10).train.images.shape[1:] == (3, 10, 10)
    save(root / "cat" / "9.png", size=(21, 12))
    data = load(root)
    assert (data.size, data.channels) == ((224, 224), 3)
    with pytest.raises(DataError, match="channels=2"):
        load(root, channels=2)
    with pytest.raises(DataError, match="on_error='raise'"):
        load(root, on_error="raise")


def test_copies_between_splits_are_counted(class_folders):
    class_folders(count=5, part="train")
    data = load(class_folders(count=3, part="test"), val_share=0)
    assert "6 test images found, pixel for pixel, in the training images" in data.notes


def test_a_class_of_one_image_is_trained_on(class_folders, save):
    root = class_folders(count=20)
    save(root / "rare" / "0.png", seed=5)
    data = load(root)
    assert torch.bincount(data.train.labels).tolist()[2] == 1
    for part in ("validation", "testing"):
        assert f"no image for {part} of 'rare': too few images, all are in the training split" in data.notes
    assert isinstance(data.train, TensorImages)


@pytest.mark.shared_data
def test_real_jpeg_files(cifar_folder):
    data = load(cifar_folder)
    assert (len(data.train), len(data.val), len(data.test)) == (126, 14, 60)
    assert (data.size, data.channels, len(data.classes)) == ((32, 32), 3, 10)
    assert torch.bincount(data.test.labels).tolist() == [6] * 10
    for value in (*data.mean, *data.std):
        assert 0.15 < value < 0.6
    assert not check(cifar_folder).bad
