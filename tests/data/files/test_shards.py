"""Shards of decoded images: what was written is read, to the last bit, or found to be damaged."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from PIL import Image

from metamixer.data.files.shards import StoredImages, read_index, write_shard


def made(path, count=5, channels=3, dtype=np.uint8, sizes=((7, 9), (4, 4), (12, 5))):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (*sizes[number % len(sizes)], channels)).astype(dtype) for number in range(count)]
    write_shard(
        path, ((bytes([65 + n]) * 16, (2 * each.shape[0], 3 * each.shape[1]), each) for n, each in enumerate(pixels))
    )
    return pixels


def opened(path, channels=3, dtype=np.uint8, whole=True):
    index = read_index(path)
    return StoredImages((path,), np.zeros(len(index), int), index, np.arange(len(index)), channels, dtype, whole)


def image(stored, row, crop, size):
    """As a new tensor; None if it is not stored."""
    into = torch.empty(1, stored.channels, *size, dtype=torch.from_numpy(np.empty(0, stored.dtype)).dtype)
    into = into.to(memory_format=torch.channels_last)
    return into[0] if stored.read(row, crop, into) else None


@pytest.mark.parametrize("preadv", [True, False], ids=["preadv", "as on Windows"])
@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.uint8), (5, np.uint8), (3, np.float32)])
def test_images_come_back_to_the_last_bit(tmp_path, monkeypatch, channels, dtype, preadv):
    if not preadv:
        monkeypatch.delattr(os, "preadv", raising=False)
    pixels = made(tmp_path / "a.shard", channels=channels, dtype=dtype)
    index = read_index(tmp_path / "a.shard")
    assert index["size"].tolist() == [list(each.shape[:2]) for each in pixels]
    assert index["full"].tolist() == [[2 * each.shape[0], 3 * each.shape[1]] for each in pixels]
    assert index["checksum"].tolist() == [crc32(each.tobytes()) for each in pixels]
    stored = opened(tmp_path / "a.shard", channels, dtype)
    for again in (stored, pickle.loads(pickle.dumps(stored))):
        for row in (3, 0, 4, 1, 2, 0):
            found = image(again, row, None, pixels[row].shape[:2])
            assert torch.equal(found, torch.from_numpy(pixels[row]).permute(2, 0, 1))
    assert image(stored, 0, lambda width, height: (0, 0, width, height), (7, 9)) is None  # not stored for crops
    assert list(tmp_path.iterdir()) == [tmp_path / "a.shard"]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_crop_is_that_of_pillow_from_the_stored_pixels(tmp_path, channels):
    """The box is in pixels of the file, which has twice the height and three times the width."""
    [pixels] = made(tmp_path / "a.shard", 1, channels, sizes=((40, 60),))
    stored = opened(tmp_path / "a.shard", channels, whole=False)
    for box, part in (
        ((30.2, 10.4, 120.1, 60.3), (10, 5, 40, 30)),
        ((0, 0, 180, 80), (0, 0, 60, 40)),
        ((179.9, 79.9, 180, 80), (59, 39, 60, 40)),
        ((1.6, 1.2, 1.7, 1.3), (1, 1, 2, 2)),
    ):
        # The first time all of the image is read, then the rows of the crop.
        for _ in range(2):
            found = image(
                stored, 0, lambda width, height, box=box: box if (width, height) == (180, 80) else None, (12, 16)
            )
            for plane, wanted in zip(found.numpy(), pixels.transpose(2, 0, 1), strict=True):
                pillow = Image.fromarray(wanted).crop(part).resize((16, 12), Image.Resampling.BILINEAR)
                assert np.abs(np.asarray(pillow).astype(int) - plane).max() <= 1
    assert image(stored, 0, None, (40, 60)) is None


def test_a_damaged_image_is_found_at_its_first_use_and_its_shard_goes(tmp_path):
    path = tmp_path / "a.shard"
    pixels = made(path)
    content = bytearray(path.read_bytes())
    content[int(read_index(path)[1]["start"]) + 5] ^= 1
    path.write_bytes(content)
    stored = opened(path)
    assert image(stored, 0, None, pixels[0].shape[:2]) is not None
    with pytest.warns(UserWarning, match=r"a\.shard is damaged and was removed; .* files are decoded"):
        assert image(stored, 1, None, pixels[1].shape[:2]) is None
    assert not path.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image(stored, 1, None, pixels[1].shape[:2]) is None
        assert image(stored, 2, None, pixels[2].shape[:2]) is not None  # the open file has it


@pytest.mark.parametrize("crop", [None, lambda width, height: (0, 0, width, height)])
def test_a_shard_that_is_cut_off_while_it_is_read_kills_nobody(tmp_path, crop):
    made(tmp_path / "a.shard", sizes=((30, 30),))
    stored = opened(tmp_path / "a.shard", whole=crop is None)
    assert image(stored, 4, crop, (30, 30)) is not None
    os.truncate(tmp_path / "a.shard", 100)
    with pytest.warns(UserWarning, match="is damaged"):
        assert image(stored, 4, crop, (30, 30)) is None


@pytest.mark.parametrize("kept", [0, 1, 20, -1, -30, -200])
def test_a_shard_that_is_cut_off_has_no_index(tmp_path, kept):
    path = tmp_path / "a.shard"
    made(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="damaged"):
        read_index(path)


def test_any_bit_of_the_index_matters(tmp_path):
    path = tmp_path / "a.shard"
    made(path, 2)
    content = path.read_bytes()
    first = int(read_index(path)[1]["start"]) + 4 * 4 * 3
    for place in range(first, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            read_index(path)


def test_nothing_is_left_of_a_shard_that_cannot_be_written(tmp_path):
    def failing():
        yield b"a" * 16, (4, 4), np.zeros((4, 4, 3), np.uint8)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_shard(tmp_path / "a.shard", failing())
    assert not list(tmp_path.iterdir())


def test_more_shards_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr("metamixer.data.files.shards._OPEN", 2)
    paths = [tmp_path / f"{number}.shard" for number in range(5)]
    pixels = [made(path, 1 + number)[-1] for number, path in enumerate(paths)]
    indices = [read_index(path)[-1:] for path in paths]
    stored = StoredImages(paths, np.arange(5), np.concatenate(indices), np.arange(5), 3, np.uint8, True)
    before = len(os.listdir("/proc/self/fd"))
    for row in (0, 1, 2, 3, 4, 0, 4, 2):
        assert torch.equal(
            image(stored, row, None, pixels[row].shape[:2]), torch.from_numpy(pixels[row]).permute(2, 0, 1)
        )
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del stored
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_memory_of_a_process_stays_as_it_is(tmp_path):
    """36 MB are read twice, in a process of its own; mapped they would count as its memory."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
import numpy as np, torch
from tests.data.files.test_shards import image, opened
from metamixer.data.files.shards import write_shard
from pathlib import Path
path = Path({str(tmp_path / "a.shard")!r})
write_shard(path, ((bytes([n]) * 16, (200, 300), np.full((200, 300, 3), n, np.uint8)) for n in range(200)))
stored = opened(path, whole=False)
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
crop = lambda width, height: (10, 10, 250, 180)
image(stored, 0, crop, (128, 128))
before = held()
for row in 2 * list(range(200)):
    assert image(stored, row, crop, (128, 128)).unique().item() == row
print(held() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4e6
