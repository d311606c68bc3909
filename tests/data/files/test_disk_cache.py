"""The cache of decoded images: what is read is what decoding gives, whatever happened while it was written."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data import Augment, DataError, EvalLoader, FolderImages, TensorImages, TrainLoader, load
from metamixer.data.files import disk_cache, image_file
from metamixer.data.random_crop import RandomCrop

# Python 3.12 warns of fork in a process with threads; the workers touch none of them.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ALL = torch.arange(9)


def smooth(path, size, seed):
    """A photograph-like image: what is cropped from a smaller copy then looks as what is cropped from the file."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture
def photos(tmp_path):
    """Eighteen images of several sizes and directions."""
    for number in range(18):
        size = [(120, 80), (64, 96), (50, 50)][number % 3]
        smooth(tmp_path / "data" / ("cat", "dog")[number % 2] / f"{number:02d}.jpg", size, number)
    return tmp_path / "data"


@pytest.fixture
def cached(photos, tmp_path):
    """Loads the photos, with a cache if nothing else is said."""

    def make(**options):
        options = {"cache": tmp_path / "cache", "image_size": 28, "cache_limit_bytes": 0, "val_share": 0.2} | options
        return load(photos, **options)

    return make


def shards(folder):
    return sorted(folder.rglob("*.shard"))


def decodes(monkeypatch):
    """The files that are decoded from now on."""
    seen, decode = [], image_file.open_picture

    def noted(source, name):
        seen.append(Path(source).name)
        return decode(source, name)

    monkeypatch.setattr(image_file, "open_picture", noted)
    return seen


@pytest.mark.parametrize("fit", ["crop", "letterbox", "squash"])
def test_without_crops_all_is_the_same_to_the_last_bit(cached, tmp_path, monkeypatch, fit):
    plain, data = cached(fit=fit, cache="off"), cached(fit=fit)
    assert (data.mean, data.std, data.notes) == (plain.mean, plain.std, plain.notes)
    headers = len(decodes(monkeypatch))
    for part in ("train", "val", "test"):
        first, second = getattr(plain, part), getattr(data, part)
        assert second.stored is not None
        everything = torch.arange(len(first))
        wanted = first.fetch(everything)
        seen = decodes(monkeypatch)
        assert torch.equal(second.fetch(everything), wanted)
        assert torch.equal(second.subset(everything.flip(0)[:2]).fetch(torch.arange(2)), wanted.flip(0)[:2])
        assert len(seen) == headers == 0
    assert len(shards(tmp_path / "cache")) == 3
    for workers in (0, 2):
        options = {"batch_size": 4, "seed": 0, "companions": True, "workers": workers, "views": 2}
        one, other = (TrainLoader(each.train, Augment(3), each.mean, each.std, **options) for each in (plain, data))
        for a, b in zip(one.epoch(1), other.epoch(1), strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.companions, b.companions)
            assert torch.equal(a.views[1], b.views[1])
            assert a.images.stride() == b.images.stride()
        one, other = (EvalLoader(each.test, each.mean, each.std, 2, workers=workers) for each in (plain, data))
        assert all(torch.equal(a.images, b.images) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_the_same_parts_of_the_images(cached, workers):
    """And differ by the resizing alone, of which a smaller stored copy makes more."""
    differences = []
    plain = cached(cache="off", crops=True)
    for side in (None, 60):
        data = cached(crops=True, cache_size=side)
        assert (data.mean, data.std) == (plain.mean, plain.std)
        assert torch.equal(data.train.fetch(ALL), plain.train.fetch(ALL))  # as they are evaluated
        assert torch.equal(data.test.fetch(ALL[:2]), plain.test.fetch(ALL[:2]))
        options = {"batch_size": 6, "seed": 0, "companions": True, "workers": workers}
        augment = Augment(0, crop=RandomCrop((0.2, 1)))
        zeros, ones = [0.0] * 3, [1.0] * 3
        one, other = (TrainLoader(each.train, augment, zeros, ones, **options) for each in (plain, data))
        gaps, others = [], []
        for a, b in zip(one.epoch(1), other.epoch(1), strict=True):
            assert torch.equal(a.labels, b.labels)
            for first, second in ((a.images, b.images), (a.companions, b.companions)):
                gaps.append((first - second).abs().flatten(1).mean(1))
                others.append((first - second.roll(1, 0)).abs().flatten(1).mean(1))
        assert torch.cat(gaps).max() < 0.06
        assert torch.cat(others).min() > 2 * torch.cat(gaps).max()
        differences.append(torch.cat(gaps).mean())
    assert differences[1] < differences[0] < 0.025


def test_a_second_start_and_another_split_decode_nothing(cached, tmp_path, monkeypatch):
    cached()
    before = shards(tmp_path / "cache")
    monkeypatch.setattr(disk_cache, "read_image", None)
    for options in ({}, {"seed": 3}, {"val_share": 0}, {"train_limit": 2}):
        cached(**options)
    assert shards(tmp_path / "cache") == before


def test_a_file_that_changed_is_decoded_again_and_no_other(cached, photos, monkeypatch):
    before = cached().train
    changed = [before.files[row] for row in sorted(before.rows.tolist())[2:5]]
    smooth(changed[0], (90, 90), 77)
    taken = changed[1].stat()
    changed[1].write_bytes(changed[1].read_bytes() + b"\0")  # another size, no other time
    os.utime(changed[1], ns=(taken.st_atime_ns, taken.st_mtime_ns))
    os.utime(changed[2], ns=(1, 1))
    seen = []

    def noted(source, *rest, decode=disk_cache.read_image, **options):
        seen.append(source)
        return decode(source, *rest, **options)

    monkeypatch.setattr(disk_cache, "read_image", noted)
    after = cached().train
    assert sorted(seen) == changed
    assert torch.equal(after.fetch(ALL), cached(cache="off").train.fetch(ALL))
    last = photos / "dog" / "17.jpg"  # keeps its place in the order
    last.rename(photos / "dog" / "99.jpg")
    cached()
    assert seen[3:] == [photos / "dog" / "99.jpg"]


def test_every_preparation_has_a_place_of_its_own(cached, tmp_path):
    for options in ({}, {"fit": "squash"}, {"channels": 1}, {"image_size": 20}, {"white": 4095}, {"bits": 16}):
        options = {"splits": ("test",), "scale": ((0.5,), (0.5,))} | options
        data, plain = cached(**options), cached(cache="off", **options)
        assert torch.equal(data.test.fetch(ALL[:2]), plain.test.fetch(ALL[:2]))
        assert data.test.dtype == plain.test.dtype == data.test.fetch(ALL[:1]).dtype
        assert data.train.stored is None  # it was not asked for
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_what_stays_in_memory_is_not_stored(cached, tmp_path):
    assert isinstance(cached(cache_limit_bytes=10**9).train, TensorImages)
    assert not (tmp_path / "cache").exists()
    data = cached(cache_limit_bytes=10**9, crops=True)
    assert isinstance(data.test, TensorImages)
    assert data.train.stored is not None
    assert data.val is not None


def test_reading_alone_writes_nothing(cached, tmp_path):
    data = cached(cache_writes=False)
    assert not (tmp_path / "cache").exists()
    wanted = data.test.fetch(ALL[:2])
    assert torch.equal(cached().test.fetch(ALL[:2]), wanted)
    assert torch.equal(cached(cache_writes=False).test.fetch(ALL[:2]), wanted)


@pytest.mark.parametrize("crops", [False, True])
def test_damaged_files_stop_or_are_skipped_and_the_rest_is_stored(cached, photos, tmp_path, monkeypatch, crops):
    bad = photos / "cat" / "04.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"1 file cannot be read; .*\n  .*cat/04\.jpg: damaged"):
        cached(crops=crops)
    stored = len(shards(tmp_path / "cache"))
    assert stored
    plain, data = (cached(crops=crops, on_error="skip", cache=place) for place in ("off", tmp_path / "cache"))
    assert [name for name, _ in data.skipped] == [str(bad)] == [name for name, _ in plain.skipped]
    assert torch.equal(data.train.labels, plain.train.labels)
    assert torch.equal(data.train.fetch(ALL), plain.train.fetch(ALL))
    looked, decode = [], FolderImages.image

    def noted(images, row, crop=None):
        looked.append(images.files[row])
        return decode(images, row, crop)

    monkeypatch.setattr(FolderImages, "image", noted)
    again = cached(crops=crops, on_error="skip", scale=(data.mean, data.std))
    assert looked == [bad]  # what is stored can be read
    assert again.skipped == data.skipped
    assert len(shards(tmp_path / "cache")) >= stored


def test_a_damaged_shard_is_stored_again(cached, tmp_path):
    wanted = cached(cache="off").train.fetch(ALL)
    cached()
    for path in shards(tmp_path / "cache"):
        path.write_bytes(path.read_bytes()[:-7])
    assert torch.equal(cached().train.fetch(ALL), wanted)
    flipped = [bytearray(path.read_bytes()) for path in shards(tmp_path / "cache")]
    for path, content in zip(shards(tmp_path / "cache"), flipped, strict=True):
        content[11] ^= 8
        path.write_bytes(content)
    data = cached(scale=((0.5,) * 3, (0.5,) * 3))
    with pytest.warns(UserWarning, match="is damaged and was removed"):
        assert torch.equal(data.train.fetch(ALL), wanted)
    assert torch.equal(data.train.fetch(ALL), wanted)
    assert len(shards(tmp_path / "cache")) == 2
    assert torch.equal(cached().train.fetch(ALL), wanted)
    assert len(shards(tmp_path / "cache")) == 3


def test_a_disk_without_room_is_said_before_anything_is_written(cached, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    with pytest.raises(OSError, match=r"data\.cache=.*cache: decoded images take 3\S*e-05 GB, 2e-05 GB are free; acc"):
        cached()
    assert not shards(tmp_path / "cache")
    cached(cache="off")


def test_a_write_that_fails_is_said_and_leaves_nothing(cached, photos, tmp_path):
    """A process that may write files of 2000 bytes at most."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from metamixer.data import load; load(sys.argv[1], cache=sys.argv[2], image_size=28, cache_limit_bytes=0)"
    )
    command = [sys.executable, "-c", code, photos, tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "OSError: data.cache: " in done.stderr
    assert ".shard cannot be written: File too large; accepted is a folder on a disk with room" in done.stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    cached()


def test_a_place_that_cannot_be_a_cache(cached, photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; a folder, auto or off is accepted"):
        cached(cache=tmp_path / "file")
    with pytest.raises(DataError, match=r"inside of the data, .*; a folder outside is accepted"):
        cached(cache=photos / "cat" / "cache")
    with pytest.raises(DataError, match=r"data\.cache_size=20 with images of 28x28; expected at least 28"):
        cached(cache_size=20, crops=True)
    with pytest.raises(OSError, match=r"data\.cache: .* cannot be written: "):
        cached(cache="/proc/nowhere")


SLOWLY = """
import sys, time
from pathlib import Path
from metamixer.data import load
from metamixer.data.files import disk_cache
disk_cache._SHARD = 3 * 28 * 28 * 3  # three images
decode = disk_cache.read_image
def slow(source, *rest, **options):
    with open(sys.argv[3], "a") as log:
        log.write(f"{source}\\n")
    time.sleep(0.05)
    return decode(source, *rest, **options)
disk_cache.read_image = slow
load(sys.argv[1], cache=sys.argv[2], image_size=28, cache_limit_bytes=0, val_share=0.2)
"""


def writer(photos, tmp_path, log="log"):
    return subprocess.Popen([sys.executable, "-c", SLOWLY, photos, tmp_path / "cache", tmp_path / log])


def until(met, seconds=60):
    end = time.monotonic() + seconds
    while not met() and time.monotonic() < end:
        time.sleep(0.005)
    assert met()


def test_a_killed_writer_loses_a_shard_at_most(cached, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_cache, "_SHARD", 3 * 28 * 28 * 3)
    child = writer(photos, tmp_path)
    until(lambda: len(shards(tmp_path / "cache")) >= 2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = shards(tmp_path / "cache")
    assert 2 <= len(kept) < 7
    home = kept[0].parent
    (home / f"{'0' * 32}.tmp").write_bytes(b"half")  # of a writer that was killed while it wrote
    decoded = (tmp_path / "log").read_text().splitlines()
    seen, decode = [], disk_cache.read_image

    def noted(source, *rest, **options):
        seen.append(str(source))
        return decode(source, *rest, **options)

    monkeypatch.setattr(disk_cache, "read_image", noted)
    data = cached()
    assert torch.equal(data.train.fetch(ALL), cached(cache="off").train.fetch(ALL))
    assert 18 - 3 * len(kept) <= len(seen) <= 18 - 3 * (len(kept) - 3)  # the last of a split may have fewer
    assert set(decoded) | set(seen) >= {str(path) for path in photos.rglob("*.jpg")}
    assert {path.suffix for path in home.iterdir()} == {".shard"}


def test_two_writers_share_the_work(cached, photos, tmp_path):
    children = [writer(photos, tmp_path, log) for log in ("one", "two")]
    assert [child.wait(timeout=120) for child in children] == [0, 0]
    one, two = ((tmp_path / log).read_text().splitlines() for log in ("one", "two"))
    assert sorted(one + two) == sorted(map(str, photos.rglob("*.jpg")))  # each of them once
    assert {path.suffix for path in shards(tmp_path / "cache")[0].parent.iterdir()} == {".shard"}
    assert torch.equal(cached().train.fetch(ALL), cached(cache="off").train.fetch(ALL))


def test_a_writer_does_what_one_that_is_killed_has_left(cached, photos, tmp_path):
    first = writer(photos, tmp_path)
    until(lambda: shards(tmp_path / "cache"))
    second = writer(photos, tmp_path, "second")
    time.sleep(0.2)
    first.kill()
    first.wait()
    assert second.wait(timeout=120) == 0
    assert torch.equal(cached().train.fetch(ALL), cached(cache="off").train.fetch(ALL))


def _fetched(images, queue):
    queue.put(images.fetch(ALL).numpy().tobytes())


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_read_the_same_files(cached, start):
    data = cached()
    wanted = data.train.fetch(ALL).numpy().tobytes()
    context = multiprocessing.get_context(start)
    queue = context.Queue()
    images = replace(data.train, labels=data.train.labels.clone())
    child = context.Process(target=_fetched, args=(images, queue))
    child.start()
    assert queue.get(timeout=60) == wanted
    child.join()
    assert data.train.fetch(ALL).numpy().tobytes() == wanted
