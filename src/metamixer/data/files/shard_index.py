"""The index of shards, built once and stored: key, label and position of every sample."""

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
        keys: names of the samples.
        labels: names or numbers of their classes.
        starts, lengths: positions of their images, in bytes.
        bad: key and cause for samples without image or label; an empty key is the shard itself.
        stamp: identifies the version of the shard.
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
        """Add a sample."""
        self.keys.append(key)
        self.labels.append(label)
        self.starts.append(start)
        self.lengths.append(length)


Scan = Callable[[BinaryIO, int], ShardIndex]
"""Builds the index of a shard from its file and size."""


def index_shards(
    addresses: Sequence[str], scan: Scan, how: str, cache: str | Path, block: int = 2**23
) -> list[ShardIndex]:
    """The index of every shard: read from the cache, or built and stored there, one file per shard.

    Several processes share the work: a shard is scanned by the process that locks it first.

    Args:
        addresses: addresses of the shards.
        scan: finds the samples of a shard.
        how: everything else that the result depends on.
        cache: as ``data.cache``; indices are in its folder ``shards.v1``, with ``off`` in that of ``auto``.
        block: bytes to read ahead from remote shards.

    Raises:
        DataError: shards are missing.
        ShardError: a shard cannot be read.
        OSError: the cache cannot be written.
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
            if (stored := _stored(path, stamp)) is None:  # another process may have built it
                stored = tried(lambda: _scanned(address, scan, size, block), address)
                stored.stamp = stamp
                if all(key for key, _ in stored.bad):  # a faulty shard is scanned again next time
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
