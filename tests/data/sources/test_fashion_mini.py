"""The set that comes with the package."""

import importlib.util
import zlib
from pathlib import Path

import pytest
import torch

from metamixer.data import DataError, load
from metamixer.data.image_set import overlap
from metamixer.data.sources.fashion_mini import CLASSES, FILE, fashion_mini


def test_shapes_and_balance():
    train, test = fashion_mini()
    assert train.images.shape == (6000, 1, 28, 28)
    assert test.images.shape == (1000, 1, 28, 28)
    assert torch.bincount(train.labels).tolist() == [600] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    assert train.classes == test.classes == CLASSES
    assert overlap(train, test) == 0
    assert FILE.stat().st_size < 4_000_000
    assert "Zalando SE" in (FILE.parent / "LICENSE-fashion-mnist").read_text()


def test_loaded_with_a_validation_split():
    data = load("fashion-mini", seed=1)
    assert torch.bincount(data.val.labels).tolist() == [60] * 10
    assert torch.bincount(data.train.labels).tolist() == [540] * 10
    assert overlap(data.train, data.val) == 0
    # Of the training images alone: with the others the third digit would differ.
    want = data.train.images.double().mean().item() / 255
    assert data.mean == pytest.approx((want,), rel=1e-12)
    assert data.mirror


def test_damage_is_found(tmp_path):
    content = bytearray(FILE.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "set.npz").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        fashion_mini(tmp_path / "set.npz")
    with pytest.raises(DataError, match="No such file"):
        fashion_mini(tmp_path / "none.npz")


@pytest.mark.shared_data
def test_the_script_makes_the_same_file(shared_data: Path):
    script = Path(__file__).parents[3] / "scripts" / "make_fashion_mini.py"
    spec = importlib.util.spec_from_file_location("make_fashion_mini", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if "ng" in zlib.ZLIB_RUNTIME_VERSION:
        pytest.skip("this zlib compresses the same pixels to other bytes")
    assert module.make(shared_data / "fashion-mnist") == FILE.read_bytes()
