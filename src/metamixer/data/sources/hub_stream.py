"""Data sets of the Hugging Face library ``datasets``, read in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

from metamixer.core.text import clean
from metamixer.data.errors import DataError
from metamixer.data.files.addresses import open_address, tried
from metamixer.data.files.load_files import Reading
from metamixer.data.files.shard_index import ShardIndex
from metamixer.data.files.sharded import Shards
from metamixer.data.files.tables import Tables, label_names, scan_parquet
from metamixer.data.sources.huggingface import SPLITS, Columns, chosen_columns, library
from metamixer.data.sources.webdataset import Kind, load_shards, tar_shards
from metamixer.data.splits import Data, HoldOut


def stream_hf(name: str, how: Reading, columns: Columns, **hold: Unpack[HoldOut]) -> Data:
    """Load a data set on the hub, or in a folder, that consists of parquet files or tar shards.

    ``datasets`` finds the files of the splits. They are read like other shards.

    Raises:
        DataError: ``datasets`` is not installed, the set does not exist or is of another kind, it has no training
            split, or its columns of images and classes are ambiguous.
    """
    datasets = library(name)
    try:
        builder = datasets.load_dataset_builder(name)
    except Exception as error:  # the library raises its own errors and those of three others
        raise DataError(f"hf:{name} cannot be opened: {error}") from error
    kind, found = builder.info.builder_name, {str(key): list(map(str, value)) for key, value in _files(builder).items()}
    if kind not in ("parquet", "webdataset") or not found:
        raise DataError(f"hf:{name}: data.stream=true with files of {kind}; expected parquet files or tar shards")
    parts = {part: next((found[key] for key in keys if key in found), []) for part, keys in SPLITS.items()}
    if not parts["train"]:
        raise DataError(f"hf:{name}: has {', '.join(map(repr, found))} but no 'train' to learn from")
    splits = {part: files for part, files in parts.items() if files}
    if kind == "webdataset":
        return load_shards(f"hf:{name}", splits, tar_shards(columns), how, **hold)
    return load_tables(f"hf:{name}", splits, how, columns, **hold)


def load_tables(
    name: str, splits: Mapping[str, Sequence[str]], how: Reading, columns: Columns, **hold: Unpack[HoldOut]
) -> Data:
    """Load the data in parquet files; ``splits`` has the addresses of each split."""
    from datasets import Features

    schema = tried(lambda: _schema(splits["train"][0]), splits["train"][0])
    image, label = chosen_columns(name.removeprefix("hf:"), Features.from_arrow_schema(schema), columns)

    def make(found: Mapping[str, ShardIndex], names: Sequence[str], buffer: int) -> Shards:
        return replace(Tables.of(found, names, buffer), column=image)

    kind = Kind(partial(scan_parquet, image=image, label=label), repr(("parquet", image, label)), make, 2**16)
    return load_shards(name, splits, kind, how, label_names(schema, label), **hold)


def _files(builder: Any) -> Mapping[Any, Sequence[str]]:
    return getattr(builder.config, "data_files", None) or {}


def _schema(address: str) -> Any:
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_schema

    with open_address(address, block_size=2**16) as file:
        try:
            return read_schema(file)
        except ArrowInvalid as error:
            raise DataError(f"{clean(address)}: is damaged: {error}") from error
