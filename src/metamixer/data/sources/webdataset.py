"""WebDataset tar shards, local or remote, as the splits of a data set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Unpack

import torch

from metamixer.core.seeding import generator
from metamixer.core.text import clean, counted, quoted
from metamixer.data.errors import DataError
from metamixer.data.files.addresses import find
from metamixer.data.files.load_files import Reading, read
from metamixer.data.files.shard_index import Scan, ShardIndex, index_shards
from metamixer.data.files.sharded import Shards
from metamixer.data.files.split_names import split_named
from metamixer.data.files.tar_scan import scan_tar
from metamixer.data.local_order import local_order
from metamixer.data.sources.huggingface import Columns
from metamixer.data.splits import Data, HoldOut

PREFIX = "wds:"


def load_wds(pattern: str, how: Reading, columns: Columns, **hold: Unpack[HoldOut]) -> Data:
    """Load the tar shards that match a pattern of braces and wildcards.

    Splits are recognized by names in the addresses, such as ``train`` and ``val``; if none is named ``train``, all
    shards are used for training.

    Raises:
        DataError: no shards match, only some name a split, or samples have no image or label.
    """
    name = PREFIX + pattern
    addresses = find(pattern)
    if not addresses:
        raise DataError(f"{clean(name)}: no such shards; a pattern such as shards/train-{{0000..0099}}.tar is accepted")
    return load_shards(name, split_shards(name, addresses), tar_shards(columns), how, **hold)


class Kind(NamedTuple):
    """A kind of shards.

    Args:
        scan: builds the index of a shard.
        version: everything that the index depends on in addition to the shard.
        make: builds the set from the indices by address, the names of the shards, and the size of the buffer.
        block: bytes to read ahead during the scan.
    """

    scan: Scan
    version: str
    make: Callable[[Mapping[str, ShardIndex], Sequence[str], int], Shards]
    block: int


def tar_shards(columns: Columns) -> Kind:
    """Tar shards with images and labels in the given members."""
    scan = partial(scan_tar, image=columns.image, label=columns.label)
    return Kind(scan, repr((PREFIX, *columns)), Shards.of, 2**23)


def load_shards(
    name: str,
    splits: Mapping[str, Sequence[str]],
    kind: Kind,
    how: Reading,
    order: Sequence[str] | None = None,
    **hold: Unpack[HoldOut],
) -> Data:
    """Load the data in shards.

    Classes are the labels of the training shards: names in alphabetical order, or numbers in ascending order.

    Args:
        name: name of the data.
        splits: addresses of the shards of each split.
        kind: kind of the shards.
        how: settings for reading.
        order: names of all classes in order, if the set defines it.
        hold: see :func:`~metamixer.data.splits.assemble`.

    Raises:
        DataError: samples without image or label, or a class in another split that is not in ``train``.
    """
    every = [address for addresses in splits.values() for address in addresses]
    indices = dict(zip(every, index_shards(every, kind.scan, kind.version, how.cache, kind.block), strict=True))
    short = _short(every)
    bad = tuple(
        (clean(": ".join(filter(None, (short[address], key)))), clean(cause))
        for address, index in indices.items()
        for key, cause in index.bad
    )
    values = {part: [value for at in addresses for value in indices[at].labels] for part, addresses in splits.items()}
    found = set(values["train"])
    numbers = all(isinstance(value, int) for value in found)
    classes = tuple(order or map(str, sorted(found) if numbers else sorted(map(str, found))))
    label = {key: number for number, key in enumerate(classes)}
    parts = {}
    for part, addresses in splits.items():
        if extra := sorted({str(value) for value in values[part]} - set(classes)):
            raise DataError(
                f"{clean(name)}: {part} has {quoted(extra)}, not among the classes of train: {quoted(classes)}"
            )
        labels = torch.tensor([label[str(value)] for value in values[part]], dtype=torch.int64)
        own = {address: indices[address] for address in addresses}
        if len(labels):
            parts[part] = kind.make(own, [short[address] for address in addresses], how.buffer), labels
    without = {part: sum(indices[at].unlabelled for at in addresses) for part, addresses in splits.items()}
    notes = tuple(f"{counted(n, 'image')} of {part} without a label left out" for part, n in without.items() if n)
    del indices, values
    if not bad and "train" not in parts:
        raise DataError(f"{clean(name)}: the training shards hold no samples")
    sets = read(parts, classes, how, bad)
    notes += _mixed(*parts["train"], len(classes)) if "train" in parts else ()
    return sets.assemble(name, how, notes, **hold)


def split_shards(name: str, addresses: Sequence[str]) -> dict[str, list[str]]:
    """The shards of each split, which is the last word of an address that is the name of a split."""
    named = {address: _split(address) for address in addresses}
    if "train" not in named.values():
        return {"train": list(addresses)}
    if nameless := [clean(address) for address, split in named.items() if split is None]:
        raise DataError(
            f"{clean(name)}: {quoted(nameless)} say no split, others say train; expected train, val or test in each "
            "address, or in none"
        )
    return {
        part: [at for at in addresses if named[at] == part]
        for part in ("train", "val", "test")
        if part in named.values()
    }


def _split(address: str) -> str | None:
    words = re.split(r"[^A-Za-z]+", address)
    return next((split for word in reversed(words) if (split := split_named(word))), None)


def _short(addresses: Sequence[str]) -> dict[str, str]:
    """The addresses without their common part, so that they do not depend on the place of the shards."""
    parts = [address.replace("\\", "/").split("/") for address in addresses]
    levels = list(zip(*(each[:-1] for each in parts), strict=False))
    common = next((depth for depth, names in enumerate(levels) if len(set(names)) > 1), len(levels))
    return {address: "/".join(each[common:]) for address, each in zip(addresses, parts, strict=True)}


def _mixed(shards: Shards, labels: torch.Tensor, classes: int) -> tuple[str, ...]:
    """A note if buffers have far fewer classes than images drawn from the whole set, as in shards sorted by class."""
    draw = generator(0, "look at a buffer")
    first = local_order(torch.from_numpy(shards.shard), shards.buffer, draw)[: shards.buffer]
    drawn = torch.randperm(len(labels), generator=draw)[: shards.buffer]
    here, there = (len(set(labels[chosen].tolist())) for chosen in (first, drawn))
    if 2 * here >= there:
        return ()
    return (
        f"a buffer of {len(first):,} images has {here:,} of {classes:,} classes, drawn from all images it would have "
        f"{there:,}: shards of shuffled samples, or a larger data.buffer, mix batches better",
    )
