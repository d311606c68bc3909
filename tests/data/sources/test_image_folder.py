import pytest

from metamixer.data.errors import DataError
from metamixer.data.files.load_files import Reading
from metamixer.data.sources.image_folder import load_folder

HOLD = {"val_share": 0.0, "seed": 0, "train_limit": None}


def loaded(root, how=None, **hold):
    return load_folder(root, how or Reading(), "auto", None, **{**HOLD, **hold})


def names(images):
    return [f"{path.parent.name}/{path.name}" for path in images.files]


def test_a_tenth_of_every_class_is_for_testing_whatever_the_seed(class_folders):
    root = class_folders(count=20)
    one, two = loaded(root), loaded(root, seed=5, val_share=0.5)
    assert sorted(name[:3] for name in names(one.test)) == ["cat"] * 2 + ["dog"] * 2
    assert names(two.test) == names(one.test)
    assert len(one.train) == 36
    assert (len(two.train), len(two.val)) == (18, 18)
    assert "4 of 40 images held out for testing, the same for every seed" in one.notes
    everything = names(two.train) + names(two.val) + names(two.test)
    assert len(set(everything)) == 40


def test_given_splits_are_kept(class_folders):
    class_folders(count=4, part="train")
    class_folders(count=3, part="val", first=50)
    root = class_folders(count=2, part="test", first=80)
    data = loaded(root, val_share=0.5)
    assert [len(part) for part in (data.train, data.val, data.test)] == [8, 6, 4]
    assert not any("held out" in note for note in data.notes)


def test_copies_between_splits_are_counted(class_folders):
    class_folders(count=4, part="train")
    data = loaded(class_folders(count=2, part="test"))
    assert "4 test images found, pixel for pixel, in the training images" in data.notes


def test_skipped_files_are_counted_and_listed(class_folders):
    root = class_folders(count=10)
    (root / "cat" / "3.png").write_bytes(b"")
    data = loaded(root, Reading(on_error="skip"))
    assert "1 file skipped that cannot be read" in data.notes
    assert [path for path, _ in data.skipped] == [str(root / "cat" / "3.png")]


def test_a_class_of_which_nothing_can_be_read(class_folders):
    root = class_folders(count=2)
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"of .*dog.* no training image can be read; the first cause: .*dog"):
        loaded(root, Reading(on_error="skip"))
