"""The samples of a tar shard, from its headers: members with the same name up to the first dot are one sample."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from metamixer.data.files.image_file import SUFFIXES
from metamixer.data.files.shard_index import ShardIndex

_LABEL_BYTES = 2**20  # largest size of a member that is read for its label


class _Member(NamedTuple):
    start: int
    length: int
    content: bytes | None


def scan_tar(file: BinaryIO, size: int, image: str | None = None, label: str | None = None) -> ShardIndex:
    """The position and label of the image of each sample; the images are not read.

    Args:
        file: the shard.
        size: its size in bytes; members that end after it are truncated.
        image: file ending of the images, such as ``input.png``; None: the only one that is an image.
        label: a field of the ``.json`` member; None: the text of the ``.cls`` member.
    """
    samples: dict[str, dict[str, _Member]] = {}
    index = ShardIndex()
    wanted = "json" if label else "cls"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # would lead backwards, in an endless loop
                    raise tarfile.ReadError("a member has a negative size")
                path = PurePosixPath(member.name)
                stem, _, ending = path.name.partition(".")
                if not member.isreg() or not ending or path.name.startswith("."):
                    continue
                key = str(path.with_name(stem))
                if ending in samples.setdefault(key, {}):
                    index.bad.append((key, f"has two members .{ending}"))
                read = _ending(ending) == wanted and member.size <= _LABEL_BYTES
                content = tar.extractfile(member).read() if read else None  # type: ignore[union-attr]
                if member.offset_data + member.size <= size:
                    samples[key][ending] = _Member(member.offset_data, member.size, content)
            file.seek(tar.offset)  # a tar that is truncated at a header only lacks the end mark
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no mark of its end")
    except tarfile.TarError as error:
        file.seek(0)
        packed = file.read(2) == b"\x1f\x8b" and not samples
        cause = "is compressed; an uncompressed tar is accepted" if packed else f"is damaged or cut off: {error}"
        index.bad.append(("", f"{cause}, after {len(samples)} samples" if samples else cause))
    cut = next(reversed(samples), None) if any(not key for key, _ in index.bad) else None
    for key, members in samples.items():
        found = _image(members, image)
        value = _label(members, wanted, label)
        if isinstance(found, str) or isinstance(value, _Wrong):
            if key != cut:
                index.bad.append((key, found if isinstance(found, str) else value.cause))  # type: ignore[union-attr]
        else:
            index.add(key, value, found.start, found.length)
    return index


class _Wrong(NamedTuple):
    cause: str


def _ending(ending: str) -> str:
    return ending.lower().rpartition(".")[2]


def _image(members: dict[str, _Member], image: str | None) -> _Member | str:
    """The image of a sample, or the reason why there is none."""
    if image is not None:
        return members.get(image) or f"no member .{image}; there are {_shown(members)}"
    fitting = [ending for ending in members if f".{_ending(ending)}" in SUFFIXES]
    fitting = [ending for ending in fitting if "." not in ending] or fitting
    if len(fitting) == 1:
        return members[fitting[0]]
    choose = "; choose one by data.image_column=ENDING" if fitting else ""
    return f"{len(fitting) or 'no'} image{'s' * (len(fitting) > 1)} among {_shown(members)}{choose}"


def _label(members: dict[str, _Member], wanted: str, field: str | None) -> str | int | _Wrong:
    """The label of a sample, or the reason why there is none."""
    content = next((each.content for ending, each in members.items() if _ending(ending) == wanted), None)
    if content is None:
        also = "; data.label_column=FIELD takes a field of .json" if wanted == "cls" else ""
        return _Wrong(f"no label: no member .{wanted} among {_shown(members)}{also}")
    try:
        value: Any = content.decode("utf-8")
        if field is not None:
            fields = json.loads(value)
            value = fields[field] if isinstance(fields, dict) and field in fields else None
            if value is None:
                known = ", ".join(map(str, fields)) if isinstance(fields, dict) else "no fields"
                return _Wrong(f"no label: no {field!r} in .json; there are {known}")
    except ValueError:
        return _Wrong(f"no label: .{wanted} is damaged")
    found = as_label(value)
    return _Wrong(f"no label: .{wanted} has {str(value)[:40]!r}") if found is None else found


def as_label(value: object) -> str | int | None:
    """A label as a number or a name; None if it is neither.

    >>> as_label(" 7"), as_label("cat\\n"), as_label(""), as_label(0.5)
    (7, 'cat', None, None)
    """
    if not isinstance(value, str | int) or isinstance(value, bool):
        return None
    text = str(value).strip()
    return int(text) if re.fullmatch(r"\d{1,18}", text) else text or None


def _shown(members: dict[str, _Member]) -> str:
    return ", ".join(f".{ending}" for ending in members) or "nothing"
