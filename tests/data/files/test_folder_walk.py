import os

import pytest

from metamixer.data.errors import DataError
from metamixer.data.files.folder_walk import entries, folders, images, is_hidden, is_image_name, is_run, left_out


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_names():
    assert [is_hidden(name) for name in (".git", "Thumbs.db", "desktop.ini", "__MACOSX", "cat", "a.b")] == [
        True, True, True, True, False, False,
    ]  # fmt: skip


def test_images_go_by_their_suffix(tmp_path):
    assert [is_image_name(tmp_path / name) for name in ("a.jpg", "a.JPEG", "a.png", "a.txt", "jpg", "a.jpg.txt")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "found"), [("data:\n  name: x\n", True), ("train:\n", False), ("dat", False), (None, False)]
)
def test_runs_have_a_recipe(content, found, tmp_path):
    if content is not None:
        (tmp_path / "recipe.yaml").write_text(content)
    assert is_run(tmp_path) is found


def test_entries_are_sorted_and_what_is_no_folder_is_reported(tmp_path):
    touch(*(tmp_path / name for name in ("b", "a", "C")))
    assert [entry.name for entry in entries(tmp_path)] == ["C", "a", "b"]
    with pytest.raises(DataError, match="nothing: cannot be listed: No such file"):
        list(entries(tmp_path / "nothing"))
    with pytest.raises(DataError, match="cannot be listed: Not a directory"):
        list(entries(tmp_path / "a"))


def test_folders(tmp_path):
    touch(tmp_path / "cat" / "1.png", tmp_path / ".hidden" / "1.png", tmp_path / "note.txt", tmp_path / "run" / "x")
    (tmp_path / "run" / "recipe.yaml").write_text("data:\n")
    os.symlink(tmp_path / "cat", tmp_path / "link")
    os.symlink(tmp_path / "nowhere", tmp_path / "dead")
    ignored = []
    assert folders(tmp_path, ignored) == {name: tmp_path / name for name in ("cat", "link")}
    assert {path.name for path in ignored} == {".hidden", "note.txt", "run", "dead"}


def test_images_at_any_depth(tmp_path):
    kept = ["1.png", "a/2.jpg", "a/b/c/3.PNG", "z.jpg"]
    touch(*(tmp_path / name for name in kept), tmp_path / "a" / "x.txt", tmp_path / ".git" / "4.png")
    os.symlink(tmp_path / "nowhere", tmp_path / "dead.png")  # reading it says what is wrong
    ignored = []
    found = images(tmp_path, ignored)
    assert set(found) == {tmp_path / name for name in [*kept, "dead.png"]}
    assert len(found) == len(set(found))
    assert {path.name for path in ignored} == {"x.txt", ".git"}
    assert images(tmp_path, []) == found


def test_links_in_circles_end(tmp_path):
    touch(tmp_path / "a" / "1.png", tmp_path / "other" / "2.png")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink(tmp_path / "a", tmp_path / "a" / "self")
    os.symlink(tmp_path / "other", tmp_path / "a" / "there")
    assert [path.name for path in images(tmp_path / "a", [])] == ["1.png", "2.png"]


def test_what_was_left_out(tmp_path):
    assert left_out(tmp_path, []) == ()
    touch(*(tmp_path / "a" / f"{i}.txt" for i in range(4)), *(tmp_path / f"{i}.csv" for i in range(3)))
    texts = [*(tmp_path / "a").iterdir(), *tmp_path.glob("*.csv")]
    (note,) = left_out(tmp_path, [*texts, tmp_path / ".git", tmp_path / "x.png"])
    assert note == ("ignored: 1 hidden, 1 image outside of class folders, 7 not images (.txt 4, .csv 3; in a 4, . 3)")
    assert left_out(tmp_path, texts[:2]) == ("ignored: 2 not images",)
