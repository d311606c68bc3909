"""Encoded images in shards: read one by one if local, many at once if remote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metamixer.core.text import clean
from metamixer.data.errors import ImageError
from metamixer.data.files.addresses import is_remote, read_ranges
from metamixer.data.files.shard_index import ShardIndex


@dataclass(frozen=True, eq=False)
class Shards(Sequence[bytes]):
    """The encoded images of shards, in order.

    Args:
        addresses: addresses of the shards.
        names: names of the shards in messages and records, which do not change if all shards are moved.
        stamps: key of each shard in the cache.
        keys: names of the samples of each shard, as bytes.
        places: ``(N, 2)``, first byte and length of every image.
        buffer: number of images that are shuffled together, and fetched in advance if they are remote.
    """

    addresses: Sequence[str]
    names: Sequence[str]
    stamps: Sequence[str]
    keys: Sequence[NDArray[np.bytes_]]
    places: NDArray[np.int64]
    buffer: int

    @classmethod
    def of(cls, found: Mapping[str, ShardIndex], names: Sequence[str], buffer: int) -> Self:
        """The images of shards whose indices are given by address."""
        keys = [np.array([key.encode(errors="surrogateescape") for key in each.keys], "S") for each in found.values()]
        places = [np.array([each.starts, each.lengths], np.int64).T for each in found.values()]
        stamps = [each.stamp for each in found.values()]
        return cls(list(found), names, stamps, keys, np.concatenate(places), buffer)

    @cached_property
    def shard(self) -> NDArray[np.int64]:
        """``(N,)``: the shard of every image."""
        return np.repeat(np.arange(len(self.keys)), list(map(len, self.keys)))

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        return np.cumsum([0, *map(len, self.keys)])

    @cached_property
    def afar(self) -> bool:
        """Whether many images should be read at once, before they are needed."""
        return any(map(is_remote, self.addresses))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: Any) -> Any:
        """The content of image ``row``; ``ImageError`` if it cannot be read."""
        if self.afar:
            return self.read([row])[row]
        start, length = self.places[row].tolist()
        try:
            with open(self.addresses[self.shard[row]], "rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise ImageError(f"{self.name(row)}: cannot be read: {error.strerror}", "unreadable") from error

    def read(self, rows: Sequence[int]) -> dict[int, bytes]:
        """The content of these images."""
        if not self.afar:
            return {row: self[row] for row in rows}
        ends = self.places[list(rows)].tolist()
        places = [(self.addresses[self.shard[row]], a, a + n) for row, (a, n) in zip(rows, ends, strict=True)]
        return dict(zip(rows, read_ranges(places), strict=True))

    def name(self, row: int) -> str:
        """Shard and key of image ``row``."""
        shard = int(self.shard[row])
        key = self.keys[shard][row - int(self._first[shard])].decode(errors="surrogateescape")
        return clean(f"{self.names[shard]}: {key}")

    def known_by(self, row: int) -> str:
        """Key of image ``row`` in the cache."""
        return f"{self.stamps[int(self.shard[row])]}\0{self.places[row].tolist()}"

    def digest(self, rows: Tensor) -> str:
        """A checksum of the names of the shards, and of the positions of these images in them."""
        found = sha256("\n".join(self.names).encode(errors="surrogateescape"))
        for column in (self.shard[:, None], self.places):
            found.update(column[rows.numpy()].astype("<i8").tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Fetched(Sequence[bytes]):
    """Images of shards, some of them in memory."""

    shards: Shards
    contents: Mapping[int, bytes]
    afar = False

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, row: Any) -> Any:
        """The content of image ``row``."""
        found = self.contents.get(row)
        return self.shards[row] if found is None else found

    def name(self, row: int) -> str:
        """Shard and key of image ``row``."""
        return self.shards.name(row)
