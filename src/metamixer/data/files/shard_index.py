"""What shards hold, found once and stored: the key, label and place of every sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from metamixer.core.files import read_mapping, write_whole
from metamixer.core.machine import cores
from metamixer.core.progress import watched
from metamixer.core.text import clean, listed
from metamixer.data.errors import DataError
from metamixer.data.files.addresses import is_remote, known_by, open_address, tried
from metamixer.data.files.cache_folder import cache_folder, locked, writing


@dataclass
class ShardIndex:
    """The samples of a shard, in its order.

    Args:
        keys: their names.
        labels: names or numbers.
        starts, lengths: where their images lie, in bytes.
        bad: key and cause of samples without image or label; an empty key is the shard itself.
        stamp: what the shard is known by.
        unlabelled: number of samples that were left out because they have no label.
    """

    keys: list[str] = field(default_factory=list)
    labels: list[str | int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    stamp: str = ""
    unlabelled: int = 0

    def add(self, key: str, label: str | int, start: int, length: int) -> None:
        """One sample more."""
        self.keys.append(key)
        self.labels.append(label)
        self.starts.append(start)
        self.lengths.append(length)


Scan = Callable[[BinaryIO, int], ShardIndex]
"""Makes the index of a shard from its file and size."""


def index_shards(
    addresses: Sequence[str], scan: Scan, how: str, cache: str | Path, block: int = 2**23
) -> list[ShardIndex]:
    """The index of every shard; what was found before is read, the rest found now, and stored shard by shard.

    Several processes share the work: a shard is scanned by whoever locks it first.

    Args:
        addresses: of the shards.
        scan: finds the samples of one.
        how: what else the result depends on.
        cache: as ``data.cache``; the indices lie in its folder ``shards.v1``, of ``off`` in that of ``auto``.
        block: bytes that are read ahead of remote shards.

    Raises:
        DataError: shards are not there.
        ShardError: one cannot be read.
        OSError: nothing can be written to the cache.
    """
    folder = cache_folder("auto" if cache == "off" else cache)
    assert folder is not None  # noqa: S101
    folder = folder / "shards.v1"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []

    def one(address: str) -> ShardIndex:
        try:
            size, stamp = known_by(address) if not is_remote(address) else tried(lambda: known_by(address), address)
        except FileNotFoundError:
            missing.append(address)
            return ShardIndex()
        name = blake2b((how + stamp).encode(errors="surrogateescape"), digest_size=16).hexdigest()
        path = folder / f"{name}.json"
        if (stored := _stored(path, stamp)) is not None:
            return stored
        with writing(path), locked(path, wait=True):
            if (stored := _stored(path, stamp)) is None:  # or another process was at it
                stored = tried(lambda: _scanned(address, scan, size, block), address)
                stored.stamp = stamp
                if all(key for key, _ in stored.bad):  # what is wrong with a whole shard is looked for again
                    write_whole(path, json.dumps(asdict(stored)))
        return stored

    workers = 16 if any(map(is_remote, addresses)) else min(16, cores())
    with ThreadPoolExecutor(workers) as pool:
        found = list(watched(pool.map(one, addresses), "indexing shards", len(addresses)))
    if missing:
        raise DataError(
            f"{len(missing)} of {len(addresses)} shards are not there: {listed(map(clean, sorted(missing)))}"
        )
    return found


def _scanned(address: str, scan: Scan, size: int, block: int) -> ShardIndex:
    with open_address(address, block_size=block, cache_type="readahead") as file:
        return scan(file, size)


def _stored(path: Path, stamp: str) -> ShardIndex | None:
    found: dict[str, Any] = read_mapping(path)
    if found.get("stamp") != stamp:
        return None
    return ShardIndex(**found | {"bad": [(key, cause) for key, cause in found["bad"]]})
