import gzip
import struct

import numpy as np
import pytest

from metamixer.data.errors import DataError
from metamixer.data.sources.idx import read_idx


def content(array):
    """The format as its authors give it: two zeros, 8 for unsigned bytes, the axes, their sizes, then the values."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), (0, 4, 5)])
@pytest.mark.parametrize("packed", [False, True])
def test_arrays_come_back(shape, packed, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    path = tmp_path / f"x-ubyte{'.gz' * packed}"
    path.write_bytes(gzip.compress(content(array)) if packed else content(array))
    found = read_idx(path, len(shape))
    assert np.array_equal(found, array)
    assert found.shape == shape
    found[...] = 1  # it may be written to


WHOLE = content(np.zeros((3, 2, 2), np.uint8))


@pytest.mark.parametrize(
    ("damaged", "message"),
    [
        (b"", "at byte 0, .*found nothing"),
        (WHOLE[:10], "at byte 0, expected an idx header of 3 dimensions"),
        (b"\0\0\x0d" + WHOLE[3:], r"\(00000803\), found 00000d03"),
        (content(np.zeros(3, np.uint8)), "at byte 0, expected an idx header of 3 dimensions"),
        (WHOLE[:-5], "at byte 23, expected 5 more bytes"),
        (WHOLE + b"x", "at byte 28, expected the end"),
        (b"\0\0\x08\3" + b"\xff" * 12, "at byte 4, sizes"),
    ],
)
def test_damage_is_named_with_its_position(damaged, message, tmp_path):
    for path, data in ((tmp_path / "x", damaged), (tmp_path / "x.gz", gzip.compress(damaged))):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            read_idx(path, 3)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"<html>", gzip.compress(WHOLE)[:-9], None], ids=["text", "cut off", "missing"])
def test_what_gzip_cannot_read(data, tmp_path):
    if data is not None:
        (tmp_path / "x.gz").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.gz: cannot be read"):
        read_idx(tmp_path / "x.gz", 3)
