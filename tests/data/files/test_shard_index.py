"""Indices of shards: stored, found again, made anew after a change, and shared by processes."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from metamixer.data import DataError
from metamixer.data.errors import ShardError
from metamixer.data.files import addresses
from metamixer.data.files.shard_index import index_shards
from metamixer.data.files.tar_scan import scan_tar
from tests.shards import RangeServer, shards


@pytest.fixture
def made(tmp_path):
    """Makes indices, and counts the shards that were scanned for it."""
    seen = []

    def scan(file, size):
        seen.append(size)
        return scan_tar(file, size)

    def make(where, how="tar"):
        seen.clear()
        found = index_shards([f"{where}/train-{n:02d}.tar" for n in range(3)], scan, how, tmp_path / "cache")
        return found, len(seen)

    shards(tmp_path / "data")
    return make


def files(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.json"))


def test_a_shard_is_scanned_once(made, tmp_path):
    first, scans = made(tmp_path / "data")
    assert scans == 3
    assert [len(index.keys) for index in first] == [30, 25, 40]
    again, scans = made(tmp_path / "data")
    assert scans == 0
    assert again == first
    _, scans = made(tmp_path / "data", how="another column")
    assert scans == 3


def test_what_changed_or_was_damaged_is_scanned_again(made, tmp_path):
    first, _ = made(tmp_path / "data")
    os.utime(tmp_path / "data" / "train-01.tar", (1e9, 1e9))
    again, scans = made(tmp_path / "data")
    assert scans == 1
    assert [index.keys for index in again] == [index.keys for index in first]
    for path, content in zip(files(tmp_path), ("", "[]", json.dumps({"stamp": "another"})), strict=False):
        path.write_text(content)
    assert made(tmp_path / "data")[0] == again


def test_what_is_wrong_with_a_whole_shard_is_not_stored(made, tmp_path):
    path = tmp_path / "data" / "train-01.tar"
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-15_000].ljust(len(whole), b"x"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found, scans = made(tmp_path / "data")
    assert [key for key, _ in found[1].bad] == [""]
    path.write_bytes(whole)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found, scans = made(tmp_path / "data")
    assert (scans, found[1].bad, len(found[1].keys)) == (1, [], 25)


def test_shards_that_are_not_there(made, tmp_path):
    (tmp_path / "data" / "train-01.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are not there: .*train-01\.tar"):
        made(tmp_path / "data")


def test_remote_shards_and_a_scan_that_is_resumed(made, tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "PAUSES", (0.01,))
    server = RangeServer(tmp_path / "data")
    try:
        server.failures = 1
        assert [index.keys for index in made(server.url)[0]] == [index.keys for index in made(tmp_path / "data")[0]]
        assert made(server.url)[1] == 0
        files(tmp_path)[0].unlink()
        files(tmp_path)[-1].unlink()
        assert made(server.url)[1] + made(tmp_path / "data")[1] == 2
        for path in files(tmp_path)[1:]:
            path.unlink()
        server.failures = 100
        with pytest.raises(ShardError, match="cannot be read after 2 attempts"):
            made(server.url)
    finally:
        server.close()


def test_two_at_once_divide_the_work(tmp_path):
    shards(tmp_path / "data", counts=(5,) * 12)
    places, seen = [f"{tmp_path}/data/train-{n:02d}.tar" for n in range(12)], []

    def scan(file, size):
        seen.append(size)
        return scan_tar(file, size)

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: index_shards(places, scan, "tar", tmp_path / "cache"), range(3))
    assert others == [first, first]
    assert len(seen) == 12


def test_a_folder_that_cannot_be_written(made, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "shards.v1").touch()
    with pytest.raises(OSError, match=r"data\.cache: .*shards\.v1 cannot be written"):
        made(tmp_path / "data")
