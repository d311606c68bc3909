"""Addresses of shards: patterns, parts of remote files, and servers that fail."""

import os

import pytest

from metamixer.data import DataError
from metamixer.data.errors import ShardError
from metamixer.data.files import addresses
from metamixer.data.files.addresses import expand, filesystem, find, known_by, read_ranges, tried
from tests.shards import RangeServer


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "PAUSES", (0.01, 0.01, 0.01))
    made = RangeServer(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("a.tar", ["a.tar"]),
        ("{a,b}/{8..11}.tar", [f"{folder}/{n}.tar" for folder in "ab" for n in range(8, 12)]),
        ("{008..010}", ["008", "009", "010"]),
        ("{train-{0..1},val}.tar", ["train-0.tar", "train-1.tar", "val.tar"]),
        ("{a,}b", ["ab", "b"]),
    ],
)
def test_braces(pattern, wanted):
    assert sorted(expand(pattern)) == sorted(wanted)


@pytest.mark.parametrize("pattern", ["{3..1}", "{0..100000}"])
def test_braces_that_are_no_range_of_shards(pattern):
    with pytest.raises(DataError, match="expected a rising range"):
        expand(pattern)


def test_wildcards(tmp_path, monkeypatch):
    for name in ("a/0.tar", "a/1.tar", "b/0.tar", "b/0.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/{a,b}/*.tar") == [str(tmp_path / name) for name in ("a/0.tar", "a/1.tar", "b/0.tar")]
    assert find(f"{tmp_path}/a/{{0,5}}.tar") == [f"{tmp_path}/a/0.tar", f"{tmp_path}/a/5.tar"]  # looked for later
    assert find(f"{tmp_path}/*.zip") == []


def test_wildcards_of_a_remote_place():
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for number in range(3):
        memory.pipe(f"/bucket/train-{number}.tar", b"x" * number)
    assert find("memory://bucket/train-*.tar") == [f"memory:///bucket/train-{number}.tar" for number in range(3)]
    assert known_by("memory://bucket/train-2.tar")[0] == 2
    memory.rm("/bucket", recursive=True)


def test_what_a_file_is_known_by_changes_with_it(tmp_path, server):
    path = tmp_path / "0.tar"
    path.write_bytes(b"abc")
    before = {where: known_by(where) for where in (str(path), f"{server.url}/0.tar")}
    assert {size for size, _ in before.values()} == {3}
    path.write_bytes(b"abd")
    os.utime(path, (1e9, 1e9))
    for where, known in before.items():
        assert known_by(where) != known


def test_ranges_are_joined_and_cut_apart_again(tmp_path, server, monkeypatch):
    monkeypatch.setattr(addresses, "_GAP", 100)
    monkeypatch.setattr(addresses, "_BLOCK", 2000)
    content = {name: os.urandom(20_000) for name in ("0.tar", "1.tar")}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    places = [("1.tar", 500, 900), ("0.tar", 19_000, 20_000), ("0.tar", 0, 10), ("0.tar", 60, 61), ("0.tar", 300, 2200)]
    places += [("1.tar", 3000, 9000), ("1.tar", 900, 1000), ("1.tar", 500, 500)]
    found = read_ranges([(f"{server.url}/{name}", start, end) for name, start, end in places])
    assert found == [content[name][start:end] for name, start, end in places]
    asked = sorted(server.requests)
    assert asked == [
        ("0.tar", 0, 61),
        ("0.tar", 300, 1900),
        ("0.tar", 19_000, 1000),
        ("1.tar", 500, 500),
        ("1.tar", 3000, 6000),
    ]
    assert read_ranges([]) == []


@pytest.mark.parametrize("fault", ["error", "cut"])
def test_a_server_that_fails_twice(tmp_path, server, fault):
    (tmp_path / "0.tar").write_bytes(bytes(range(256)) * 40)
    server.failures, server.fault = 2, fault
    assert read_ranges([(f"{server.url}/0.tar", 100, 9000)]) == [(bytes(range(256)) * 40)[100:9000]]
    assert server.failures == 0


@pytest.mark.parametrize("fault", ["error", "cut"])
def test_a_server_that_does_not_come_back(tmp_path, server, fault):
    (tmp_path / "0.tar").write_bytes(bytes(9000))
    server.failures, server.fault = 1000, fault
    with pytest.raises(ShardError, match=r"0\.tar: cannot be read after 4 attempts: "):
        read_ranges([(f"{server.url}/0.tar", 0, 9000)])
    assert server.failures == 996


def test_what_no_attempt_changes(tmp_path, server):
    (tmp_path / "0.tar").write_bytes(bytes(9000))
    with pytest.raises(DataError, match=r"1\.tar: no such file"):
        read_ranges([(f"{server.url}/1.tar", 0, 10)])
    server.whole = True
    with pytest.raises(DataError, match="sends whole files"):
        read_ranges([(f"{server.url}/0.tar", 0, 10)])
    assert len(server.requests) == 1


def test_schemes_that_are_not_known():
    for address in ("nothing://place/0.tar", "adl://place/0.tar"):
        with pytest.raises(DataError, match="cannot be read here"):
            filesystem(address)


def test_a_file_of_this_machine_is_tried_once(tmp_path):
    seen = []

    def fails():
        seen.append(1)
        raise OSError("broken")

    with pytest.raises(ShardError, match="cannot be read: OSError: broken"):
        tried(fails, str(tmp_path))
    assert len(seen) == 1
