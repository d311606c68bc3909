"""Addresses of shards: local files, or URLs that fsspec reads (https://, s3://, gs://, hf://, ...)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from glob import glob
from typing import Any, TypeVar

from metamixer.core.text import clean
from metamixer.data.errors import DataError, ShardError

T = TypeVar("T")
Range = tuple[str, int, int]
"""Address, first byte, and the byte after the last."""

PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between attempts to read a remote file."""
_GAP, _BLOCK, _AT_ONCE = 2**16, 2**23, 16  # bytes between ranges of one request, bytes of a request, parallel requests
_KNOWN_BY = ("size", "etag", "contentmd5", "md5hash", "lastmodified", "updated", "mtime", "blobid")


def is_remote(address: str) -> bool:
    """Whether an address is a URL.

    >>> is_remote("s3://bucket/0.tar"), is_remote("/data/0.tar")
    (True, False)
    """
    return "://" in address


def expand(pattern: str) -> list[str]:
    """Expand the braces of a pattern.

    >>> expand("{train,val}-{09..10}.tar")
    ['train-09.tar', 'train-10.tar', 'val-09.tar', 'val-10.tar']
    """
    if (found := re.search(r"\{([^{}]*)\}", pattern)) is None:
        return [pattern]
    ways = found[1].split(",")
    if span := re.fullmatch(r"(\d+)\.\.(\d+)", found[1]):
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < 100_000:
            raise DataError(f"{found[0]}: expected a rising range of at most 100,000 shards, such as {{0000..0099}}")
        ways = [str(number).zfill(len(span[1])) for number in range(first, last + 1)]
    written = (expand(pattern[: found.start()] + way + pattern[found.end() :]) for way in ways)
    return list(dict.fromkeys(one for some in written for one in some))


def find(pattern: str) -> list[str]:
    """The addresses that match a pattern of braces and wildcards, sorted; local files need not exist."""
    found: set[str] = set()
    for one in expand(pattern):
        if is_remote(one) and ("*" in one or "[" in one):
            files, path = filesystem(one)
            found.update(files.unstrip_protocol(name) for name in tried(lambda f=files, p=path: f.glob(p), one))  # type: ignore[misc]
        elif is_remote(one):
            found.add(one)
        else:
            one = os.path.expanduser(one)
            found.update(glob(one, recursive=True) if re.search(r"[*?\[]", one) else [one])
    return sorted(found)


def filesystem(address: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        DataError: the scheme is unknown, or needs a package that is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        how = "; pip install 'metamixer[stream]'" if address.startswith("http") else ""
        raise DataError(f"{clean(address)} cannot be read here: {clean(error)}{how}") from error
    return files, path


def open_address(address: str, **remote: Any) -> Any:
    """Open a file for reading; the caller closes it. ``remote``: options of ``open`` of ``fsspec``."""
    if not is_remote(address):
        return open(address, "rb")
    files, path = filesystem(address)
    return files.open(path, "rb", **remote)


def tried(task: Callable[[], T], address: str) -> T:
    """The result of a task that reads from the address; a task that fails is repeated if the address is remote.

    Raises:
        DataError: there is no such file, or no permission to read it.
        ShardError: all attempts failed.
    """
    for pause in (*PAUSES, None):
        try:
            return task()
        except Exception as error:  # each file system has its own
            if isinstance(error, DataError) or (wrong := _for_good(address, error)) is not None:
                raise (error if isinstance(error, DataError) else wrong) from error  # type: ignore[misc]
            if pause is None or not is_remote(address):
                raise _failed(address, error) from error
            time.sleep(pause)
    raise AssertionError


def known_by(address: str) -> tuple[int, str]:
    """Size of a file, and its key: address, size, and modification time or the checksum of the server."""
    if not is_remote(address):
        found = os.stat(address)
        return found.st_size, f"{os.path.abspath(address)}\0{found.st_size}\0{found.st_mtime_ns}"
    files, path = filesystem(address)
    info = files.info(path)
    marks = {re.sub("[-_]", "", key.lower()): str(value) for key, value in info.items()}
    size = info.get("size") or 2**62  # not every server knows it
    return int(size), "\0".join([address, *(f"{key}={marks[key]}" for key in _KNOWN_BY if key in marks)])


def read_ranges(ranges: Sequence[Range]) -> list[bytes]:
    """The content of each range of remote files; close ranges share a request, and requests run in parallel.

    Raises:
        DataError: there is no such file, or the server does not read parts of files.
        ShardError: all attempts failed.
    """
    from fsspec.utils import merge_offset_ranges

    columns = (list(column) for column in zip(*ranges, strict=True))
    blocks = list(zip(*merge_offset_ranges(*columns, max_gap=_GAP, max_block=_BLOCK), strict=True)) if ranges else []
    order, found, done = sorted(range(len(ranges)), key=ranges.__getitem__), [b""] * len(ranges), 0
    for first in range(0, len(blocks), _AT_ONCE):
        some = blocks[first : first + _AT_ONCE]
        for (address, start, end), content in zip(some, _contents(some), strict=True):
            while done < len(order) and ranges[order[done]][0] == address and ranges[order[done]][2] <= end:
                _, begin, stop = ranges[order[done]]
                found[order[done]] = content[begin - start : stop - start]
                done += 1
    return found


def _contents(blocks: Sequence[Range]) -> list[bytes]:
    files, _ = filesystem(blocks[0][0])
    found: dict[Range, bytes] = {}
    for pause in (0, *PAUSES):
        time.sleep(pause)
        missing = [block for block in blocks if block not in found]
        paths = [files._strip_protocol(address) for address, _, _ in missing]
        got = files.cat_ranges(paths, [start for _, start, _ in missing], [end for _, _, end in missing])
        for block, content in zip(missing, got, strict=True):
            address, start, end = block
            if isinstance(content, Exception):
                wrong, failed = _for_good(address, content), _failed(address, content)
                if wrong is not None:
                    raise wrong from content
            elif len(content) == end - start:
                found[block] = content
            elif len(content) > end - start:
                raise DataError(f"{clean(address)}: the server sends whole files; expected one that sends ranges")
            else:
                failed = _failed(address, f"{len(content):,} of {end - start:,} bytes came")
        if len(found) == len(blocks):
            return [found[block] for block in blocks]
    raise failed


def _for_good(address: str, error: Exception) -> DataError | None:
    """An error that another attempt would not change; None for other errors."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{clean(address)}: no such file")
    if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
        return DataError(f"{clean(address)}: no permission to read it; credentials are those that fsspec finds")
    return None


def _failed(address: str, cause: object) -> ShardError:
    what = f"{type(cause).__name__}: {cause}" if isinstance(cause, Exception) else cause
    if not is_remote(address):
        return ShardError(f"{clean(address)}: cannot be read: {clean(what)}")
    return ShardError(f"{clean(address)}: cannot be read after {len(PAUSES) + 1} attempts: {clean(what)}")
