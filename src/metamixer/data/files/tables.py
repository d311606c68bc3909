"""Encoded images in parquet files: row groups are the unit of reading."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

from metamixer.data.files.addresses import open_address, tried
from metamixer.data.files.shard_index import ShardIndex
from metamixer.data.files.sharded import Shards


def scan_parquet(file: BinaryIO, size: int, image: str, label: str) -> ShardIndex:
    """Read the labels of a parquet file, and no other column.

    The position of an image is its row group times 2³², plus its row in the group; its length is that of all images of
    the group.

    Args:
        file: the shard.
        size: size of the file in bytes; not used.
        image: name of the column with encoded images.
        label: name of the column with labels: a ``ClassLabel``, names, or numbers. Rows without a label are left out.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    index, row = ShardIndex(), 0
    try:
        table = ParquetFile(file)
        names = label_names(table.schema_arrow, label)
        for number in range(table.metadata.num_row_groups):
            group = table.metadata.row_group(number)
            columns = [group.column(place) for place in range(group.num_columns)]
            sizes = [each.total_compressed_size for each in columns if each.path_in_schema.split(".")[0] == image]
            values = table.read_row_group(number, columns=[label]).column(label).to_pylist()
            for place, value in enumerate(values):
                if value is None or (names is not None and value < 0):
                    index.unlabelled += 1
                    continue
                value = value if names is None else names[value]
                value = value if isinstance(value, int) and not isinstance(value, bool) else str(value)
                index.add(f"row {row + place}", value, (number << 32) + place, sum(sizes))
            row += len(values)
    except (pyarrow.ArrowInvalid, KeyError) as error:
        index.bad.append(("", f"is damaged or lacks a column: {error}"))
    return index


def label_names(schema: Any, label: str) -> Sequence[str] | None:
    """The names of a ``ClassLabel`` column; None for another kind of column."""
    import datasets

    feature = datasets.Features.from_arrow_schema(schema).get(label)
    return getattr(feature, "names", None)


@dataclass(frozen=True, eq=False)
class Tables(Shards):
    """The encoded images of parquet files.

    A row group is read as a whole, so many images are read at once, by the process that trains.

    Args:
        column: name of the column with images.
    """

    column: str = ""

    @cached_property
    def afar(self) -> bool:
        """True also for local files."""
        return True

    @cached_property
    def _metadata(self) -> dict[int, Any]:
        """The footers of the files read so far."""
        return {}

    def read(self, rows: Sequence[int]) -> dict[int, bytes]:
        """The content of these images.

        Raises:
            ShardError: a file cannot be read.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            groups.setdefault((int(self.shard[row]), int(self.places[row, 0]) >> 32), []).append(row)

        def one(key: tuple[int, int]) -> dict[int, bytes]:
            return tried(lambda: self._group(*key, groups[key]), self.addresses[key[0]])

        with ThreadPoolExecutor(8) as pool:
            return {row: content for some in pool.map(one, groups) for row, content in some.items()}

    def _group(self, shard: int, group: int, rows: Sequence[int]) -> dict[int, bytes]:
        """Some images of a row group."""
        from pyarrow.parquet import ParquetFile
        from pyarrow.types import is_struct

        with open_address(self.addresses[shard], cache_type="none") as file:
            table = ParquetFile(file, metadata=self._metadata.get(shard))
            self._metadata[shard] = table.metadata
            inside = is_struct(table.schema_arrow.field(self.column).type)  # with content and path
            name = f"{self.column}.bytes" if inside else self.column
            images = table.read_row_group(group, columns=[name]).column(self.column)
        found = ((row, images[int(self.places[row, 0]) & 0xFFFFFFFF].as_py()) for row in rows)
        return {row: (value and value["bytes"] if inside else value) or b"" for row, value in found}
