"""The folder of the cache and its locks."""

import pytest

from metamixer.data import DataError
from metamixer.data.files.cache_folder import cache_folder, locked, writing


def test_auto_is_the_folder_for_caches(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("auto") == tmp_path / "metamixer" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder("auto") == tmp_path / "home" / ".cache" / "metamixer" / "images"
    assert cache_folder("~/photos") == tmp_path / "home" / "photos"
    assert cache_folder("off") is None
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file; a folder, auto or off is accepted"):
        cache_folder(tmp_path / "file")


def test_a_lock_is_held_by_one(tmp_path):
    with locked(tmp_path / "a.shard", wait=True) as mine, locked(tmp_path / "a.shard", wait=False) as other:
        assert (mine, other) == (True, False)
    with locked(tmp_path / "a.shard", wait=False) as mine:
        assert mine
    assert not list(tmp_path.iterdir())


def test_errors_of_writing_say_what_helps(tmp_path):
    with (
        pytest.raises(OSError, match=r"data\.cache: .*/place cannot be written: .*; accepted is a folder"),
        writing(tmp_path / "place"),
    ):
        (tmp_path / "place" / "file").touch()
