"""Images in shards: read from here, or from a server in large parts, ahead of their need and in bounded memory."""

import threading
import tracemalloc
from contextlib import closing

import numpy as np
import pytest
import torch

from metamixer.data import Augment, EvalLoader, ImageError, TrainLoader, load
from metamixer.data.files import addresses, sharded
from metamixer.data.random_crop import RandomCrop
from tests.shards import RangeServer, pack, picture, same, samples, shards

# Python 3.12 warns of fork in a process with threads; the workers touch none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "PAUSES", (0.01, 0.01, 0.01))
    shards(tmp_path / "data")
    shards(tmp_path / "data", (10,), "test", first=500)
    with closing(RangeServer(tmp_path / "data")) as made:
        yield made


@pytest.fixture
def loaded(tmp_path, server):
    """The data, here or from the server."""

    def make(remote=False, names="{train-{00..02},test-00}.tar", **options):
        where = server.url if remote else tmp_path / "data"
        return load(
            f"wds:{where}/{names}", **{"cache": tmp_path / "cache", "cache_writes": False, "buffer": 32} | options
        )

    return make


def loader(data, **options):
    options = {"batch_size": 8, "seed": 3, "companions": True, "augment": Augment(1)} | options
    augment = options.pop("augment")
    return TrainLoader(data.train, augment, data.mean, data.std, **options)


@pytest.mark.parametrize("crop", [None, RandomCrop((0.2, 1))])
def test_batches_are_the_same_from_anywhere_with_any_workers_and_from_any_batch(loaded, crop):
    here, there = loaded(), loaded(remote=True)
    assert (here.mean, here.std, here.classes) == (there.mean, there.std, there.classes)
    options = {"augment": Augment(0 if crop else 1, crop=crop), "views": 2}
    for epoch in (0, 1):
        whole = list(loader(here, **options).epoch(epoch))
        for data in (here, there):
            workers = loader(data, workers=2, **options)
            same(list(workers.epoch(epoch)), whole)
            for start in (1, 3, 5, len(whole) - 1):
                same(list(workers.epoch(epoch, start)), whole[start:])
                same(list(loader(data, **options).epoch(epoch, start)), whole[start:])
    assert not torch.equal(next(loader(here).epoch(0)).labels, next(loader(here).epoch(1)).labels)
    for part in (here.test, there.test):
        same_images = [batch.images for batch in EvalLoader(part, here.mean, here.std, 4, workers=2)]
        assert torch.equal(
            torch.cat(same_images), torch.cat([b.images for b in EvalLoader(here.test, here.mean, here.std)])
        )


@pytest.mark.parametrize("remote", [False, True])
def test_the_shares_of_two_processes_are_the_whole_batch(loaded, remote):
    data = loaded(remote)
    parts = [list(loader(data).shared(number, 2).epoch(0)) for number in (0, 1)]
    for whole, one, other in zip(loader(data).epoch(0), *parts, strict=True):
        for name in ("images", "companions"):
            both = torch.stack([getattr(one, name), getattr(other, name)], 1).flatten(0, 1)
            assert torch.equal(both, getattr(whole, name))
        assert torch.equal(one.whole, whole.labels)


def test_a_batch_and_its_companions_are_of_one_buffer_and_one_class(loaded):
    data = loaded(val_share=0.0)
    train, files = data.train, data.train.files
    made = loader(data, batch_size=10)  # 3 batches in a buffer of 32
    for epoch in range(3):
        rows, table = made._order(epoch)
        order = torch.cat(list(rows))
        assert len(set(order.tolist())) == len(order) == 90
        for number, batch in enumerate(rows):
            buffer = set(torch.cat(list(rows[number - number % 3 :][:3])).tolist())
            buffer |= set(range(95)) - set(order.tolist()) if number // 3 == 2 else set()
            others = made._request(epoch, number, batch, table).others
            assert set(others.tolist()) <= buffer
            assert torch.equal(train.labels[others], train.labels[batch])
            assert not (others == batch).any()
            assert len(set(files.shard[train.rows[batch]])) <= 3


def test_a_buffer_is_fetched_by_few_requests_while_the_one_before_is_in_use(loaded, server, monkeypatch):
    data = loaded(remote=True, val_share=0.0)
    seen, fetch = [], sharded.read_ranges
    server.requests.clear()

    def noted(places):
        seen.append((threading.current_thread() is threading.main_thread(), len(places)))
        return fetch(places)

    monkeypatch.setattr(sharded, "read_ranges", noted)
    batches = loader(data).epoch(0)  # 11 batches of 8, 4 in a buffer
    next(batches)
    list(batches)
    assert [main for main, _ in seen] == [False] * 3
    assert [count for _, count in seen][:2] == [32, 32]
    assert len(server.requests) <= 9  # each of 3 buffers has parts of at most 3 shards
    everything = sum(path.stat().st_size for path in (data.train.files.addresses and [*_tars(server)]))
    assert sum(length for *_, length in server.requests) < everything


def _tars(server):
    from pathlib import Path

    return Path(server._server.RequestHandlerClass.keywords["directory"]).glob("train-*.tar")


def test_images_that_do_not_decode_are_named_when_their_turn_comes(tmp_path):
    bad = [("bad.png", picture(0)[:100]), ("bad.cls", "cat")]
    pack(tmp_path / "data" / "train-00.tar", [*samples(0, 100), *bad, *samples(101, 100)])
    scale = ((0.5,) * 3, (0.2,) * 3)  # or it is found by looking at up to 512 images
    data = load(f"wds:{tmp_path}/data/*.tar", cache=tmp_path / "cache", cache_writes=False, val_share=0.0, scale=scale)
    for workers in (0, 2):
        with pytest.raises(ImageError, match=r"^train-00\.tar: bad: damaged"):
            list(loader(data, workers=workers).epoch(0))


def test_a_server_that_is_gone_ends_the_epoch_and_one_that_comes_back_does_not(loaded, server):
    whole = list(loader(loaded()).epoch(0))
    made = loader(loaded(remote=True), workers=2)
    server.failures, server.fault = 2, "cut"
    same(list(made.epoch(0)), whole)
    server.failures = 10**6
    with pytest.raises(addresses.ShardError, match=r"train-0\d\.tar: cannot be read after 4 attempts"):
        list(made.epoch(1))
    server.failures = 0
    same(list(made.epoch(0)), whole)


def test_a_shard_that_is_gone(loaded, tmp_path):
    data = loaded()
    (tmp_path / "data" / "test-00.tar").unlink()
    with pytest.raises(ImageError, match=r"test-00\.tar: 00500: cannot be read: No such file"):
        data.test.fetch(torch.arange(2))


def test_memory_is_that_of_two_buffers(tmp_path):
    """Of 1,000 images of 30 kB, 30 MB, in buffers of 40, 1.2 MB."""
    with closing(RangeServer(tmp_path)) as server:
        for number in range(20):
            pack(tmp_path / f"train-{number}.tar", samples(50 * number, 50, size=(100, 100)))
        data = load(
            f"wds:{server.url}/train-{{0..19}}.tar",
            cache=tmp_path / "cache",
            cache_writes=False,
            image_size=8,
            buffer=40,
        )
        made = loader(data)
        list(made.epoch(0))
        tracemalloc.start()
        list(made.epoch(1))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 2e6 < peak < 8e6


def test_the_checksum_is_of_shards_and_places(loaded, tmp_path):
    data = loaded()
    digest = data.train.files.digest
    assert digest(data.train.rows) == loaded(remote=True).train.files.digest(data.train.rows)
    assert digest(data.train.rows) != digest(data.train.rows.flip(0))
    content = dict(samples(0, 30))
    content["00003.png"] = picture(3, (9, 8))
    pack(tmp_path / "data" / "train-00.tar", content.items())
    assert loaded().train.files.digest(data.train.rows) != digest(data.train.rows)


@pytest.mark.parametrize("crops", [False, True])
def test_pictures_that_are_stored_are_not_fetched(loaded, server, crops):
    """And those that are stored for crops are fetched together where they are evaluated."""
    kept = loaded(remote=True, cache_writes=True, crops=crops)
    assert kept.train.stored is not None
    assert np.all(kept.train.stored.places[kept.train.rows] >= 0)
    options = {"augment": Augment(0, crop=RandomCrop((0.5, 1)))} if crops else {}
    server.requests.clear()
    batches = list(loader(kept, **options).epoch(0))
    assert not server.requests
    if not crops:
        same(batches, list(loader(loaded()).epoch(0)))
    few = torch.arange(40)
    assert torch.equal(kept.train.fetch(few), loaded().train.fetch(few))
    assert len(server.requests) == (2 if crops else 0)
