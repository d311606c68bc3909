"""Images in parquet files: what is read of them, and how often."""

from collections import Counter
from contextlib import closing

import pytest
import torch

from metamixer.data import Augment, DataError, TrainLoader, load
from metamixer.data.errors import ShardError
from metamixer.data.files import addresses, tables
from metamixer.data.files.load_files import Reading
from metamixer.data.files.tables import scan_parquet
from metamixer.data.sources.hub_stream import load_tables
from metamixer.data.sources.huggingface import Columns
from tests.shards import RangeServer, parquet, parquets, same

pytest.importorskip("datasets")
# Python 3.12 warns of fork in a process with threads; the workers touch none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
HOLD = {"val_share": 0.0, "seed": 0, "train_limit": None}


@pytest.fixture
def reads(monkeypatch):
    """The row groups that are read from now on, by shard and number."""
    found, read = Counter(), tables.Tables._group

    def noted(self, shard, group, rows):
        found[self.names[shard], group] += 1
        return read(self, shard, group, rows)

    monkeypatch.setattr(tables.Tables, "_group", noted)
    return found


def batches(data, **options):
    made = TrainLoader(data.train, Augment(1), data.mean, data.std, 8, 3, companions=True, **options)
    return list(made.epoch(0))


def test_places_are_those_of_the_rows(tmp_path):
    path = parquet(tmp_path / "0.parquet", range(10), group=4, labels=[0, 1, -1, 1, 0, 0, None, 1, 1, 0])
    with path.open("rb") as file:
        index = scan_parquet(file, 0, "img", "kind")
    assert index.keys == [f"row {n}" for n in (0, 1, 3, 4, 5, 7, 8, 9)]
    assert index.labels == ["x", "y", "y", "x", "x", "y", "y", "x"]
    assert [(start >> 32, start & 0xFFFFFFFF) for start in index.starts] == [
        (0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 3), (2, 0), (2, 1),
    ]  # fmt: skip
    assert (index.unlabelled, index.bad) == (2, [])
    with path.open("rb") as file:
        assert "lacks a column" in scan_parquet(file, 0, "img", "other").bad[0][1]
    path.write_bytes(path.read_bytes()[:-7])
    with path.open("rb") as file:
        assert scan_parquet(file, 0, "img", "kind").bad[0][0] == ""


@pytest.mark.parametrize("remote", [False, True])
def test_images_are_those_of_the_library(tmp_path, reads, remote):
    """By any workers, and a row group is read once for a buffer."""
    folder = parquets(tmp_path / "data")
    plain, streamed = load(folder, val_share=0.0), None
    with closing(RangeServer(folder)) as server:
        splits = {part: [str(path) for path in sorted(folder.glob(f"{part}-*"))] for part in ("train", "test")}
        if remote:
            splits = {
                part: [f"{server.url}/{path.rpartition('/')[2]}" for path in some] for part, some in splits.items()
            }
        how = Reading(cache=tmp_path / "cache", cache_writes=False, buffer=24)
        streamed = load_tables("hf:some", splits, how, Columns(), **HOLD)
        assert streamed.classes == plain.classes == ("y", "x")
        assert (streamed.mean, streamed.std) == (plain.mean, plain.std)
        for part in ("train", "test"):
            one, other = getattr(plain, part), getattr(streamed, part)
            assert torch.equal(one.fetch(torch.arange(len(one))), other.fetch(torch.arange(len(one))))
            assert torch.equal(one.labels, other.labels)
        reads.clear()
        first = batches(streamed)  # 6 batches of 8 of 50 images, 3 in a buffer; groups of 5
        assert sum(reads.values()) <= 50 / 5 + 4
        assert max(reads.values()) <= 2
        same(batches(streamed, workers=2), first)
        if remote:
            server.requests.clear()
            batches(streamed)
            assert sum(length for *_, length in server.requests) < 2 * sum(map(len, _train_bytes(folder)))


def _train_bytes(folder):
    return [path.read_bytes() for path in folder.glob("train-*")]


def test_a_server_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "PAUSES", (0.01, 0.01))
    folder = parquets(tmp_path / "data")
    with closing(RangeServer(folder)) as server:
        splits = {"train": [f"{server.url}/train-{number}.parquet" for number in range(2)]}
        how = Reading(cache=tmp_path / "cache", cache_writes=False, buffer=24)
        data = load_tables("hf:some", splits, how, Columns(), **HOLD)
        first = batches(data)
        server.failures = 2
        same(batches(data), first)
        assert server.failures == 0
        server.failures = 10**6
        with pytest.raises(ShardError, match=r"train-\d\.parquet: cannot be read after 3 attempts"):
            batches(data)
        server.failures = 0
        with pytest.raises(DataError, match=r"nothing\.parquet: no such file"):
            load_tables("hf:some", {"train": [f"{server.url}/nothing.parquet"]}, how, Columns(), **HOLD)
