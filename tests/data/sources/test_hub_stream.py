"""Hugging Face sets that are read where they are, found by the library: folders, because tests have no network."""

import pytest
import torch

from metamixer.data import DataError, load
from tests.shards import pack, parquet, parquets, samples, shards

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hub"))
    datasets.disable_progress_bars()


@pytest.fixture
def streamed(tmp_path):
    def make(name=tmp_path / "data", **options):
        return load(name, stream=True, **{"cache": tmp_path / "cache", "cache_writes": False} | options)

    return make


@pytest.mark.parametrize("kind", ["", "hf:"])
def test_a_folder_of_parquet_files(streamed, tmp_path, kind):
    name = f"{kind}{parquets(tmp_path / 'data')}"
    data, plain = streamed(name), load(name)
    assert (data.classes, len(data.train), len(data.val), len(data.test)) == (plain.classes, 45, 5, 12)
    for part in ("train", "val", "test"):
        one, other = getattr(data, part), getattr(plain, part)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.fetch(torch.arange(len(one))), other.fetch(torch.arange(len(one))))


def test_a_folder_of_tar_shards(streamed, tmp_path):
    shards(tmp_path / "data")
    shards(tmp_path / "data", (10,), "test", first=300)
    data = streamed(f"hf:{tmp_path}/data", val_share=0.0)
    assert (len(data.train), len(data.test), data.classes) == (95, 10, ("cat", "dog", "emu"))


def test_rows_without_a_label_and_other_names_of_columns(streamed, tmp_path):
    parquet(tmp_path / "data" / "train-0.parquet", range(30), labels=[0, 1, -1] * 10)
    parquet(tmp_path / "data" / "test-0.parquet", range(40, 46), labels=[0, 1] * 3, names=("y", "x"))
    data = streamed(val_share=0.0, image_column="img", label_column="kind")
    assert len(data.train) == 20
    assert data.test.labels.tolist() == [1, 0] * 3
    assert "10 images of train without a label left out" in data.notes
    for options, said in (
        ({"label_column": "nothing"}, "is not a column"),
        ({"image_column": "kind"}, "holds no images"),
    ):
        with pytest.raises(DataError, match=said):
            streamed(**options)


def test_what_cannot_be_streamed_says_so(streamed, tmp_path):
    pack(tmp_path / "photos" / "cat" / "0.tar", samples(0, 1))
    for name in ("fashion-mini", str(tmp_path / "photos")):
        with pytest.raises(
            DataError, match=r"data\.stream=true with .*; hf:NAME or a folder of parquet files is accepted"
        ):
            streamed(name)
    with pytest.raises(DataError, match="nowhere cannot be opened: "):
        streamed(f"hf:{tmp_path}/nowhere")
    with pytest.raises(DataError, match="scenes are made of images in memory"):
        streamed(f"scenes:{parquets(tmp_path / 'data')}")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"data\.stream=true with files of csv; expected parquet files or tar shards"):
        streamed(f"hf:{tmp_path}/text")
    (tmp_path / "data" / "train-0.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"train-0\.parquet: is damaged"):
        streamed()
