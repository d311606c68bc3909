"""The files of torchvision's sets, fetched and read without running or unpacking what they could say of themselves.

torchvision unpacks a whole archive and unpickles what was in it, both after a check of its MD5 checksum. That checksum
is for transport: files can be made that have one in common. So archives are read here by the names of the few files
that are wanted, and of CIFAR's pickles only arrays, numbers, texts, lists and dictionaries are accepted.
"""

from __future__ import annotations

import gzip
import os
import pickle
import shutil
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any
from urllib.error import URLError

import numpy as np
import torch

from metamixer.datasets.errors import DataError
from metamixer.datasets.idx import read_idx
from metamixer.datasets.images import TensorImages

_ARRAYS = {
    (f"numpy.{core}multiarray", "_reconstruct") for core in ("core.", "_core.")
} | {("numpy", "ndarray"), ("numpy", "dtype")}  # fmt: skip


class _Plain(pickle.Unpickler):
    """Builds arrays and plain values; whatever else a pickle asks for is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if name == "_reconstruct":  # its module has moved since
            module = "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
        return super().find_class(module, name)


def read_cifar(origin: Any, root: Path, part: str) -> TensorImages:
    """A part of CIFAR-10 or CIFAR-100 from its files ``for Python``.

    Args:
        origin: torchvision's class: the names and checksums of the files.
        root: the folder above them.
        part: ``train`` or ``test``.

    Raises:
        DataError: a file is not there, is another one, or is not what it should be.
    """
    folder = root / origin.base_folder
    listed = origin.train_list if part == "train" else origin.test_list
    meta = _plain(folder / origin.meta["filename"], origin.meta["md5"])
    found = [_plain(folder / name, digest) for name, digest in listed]
    try:
        classes = tuple(map(str, meta[origin.meta["key"]]))
        rows = [np.asarray(one["data"], np.uint8).reshape(-1, 3, 32, 32) for one in found]
        labels = [label for one in found for label in one["labels" if "labels" in one else "fine_labels"]]
        images, numbers = torch.from_numpy(np.concatenate(rows)), torch.tensor(labels, dtype=torch.int64)
        whole = len(images) == len(numbers) and bool(((numbers >= 0) & (numbers < len(classes))).all())
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: its files are not those of CIFAR: {error}") from error
    if not whole:
        raise DataError(f"{folder}: {len(images)} images and {len(numbers)} labels do not fit {len(classes)} classes")
    return TensorImages(images, numbers, classes)


def _plain(path: Path, digest: str) -> dict[str, Any]:
    from torchvision.datasets.utils import check_integrity

    if not check_integrity(path, digest):
        raise DataError(f"{path} {'is not the file that was published' if path.exists() else 'is missing'}")
    try:
        with path.open("rb") as file:
            found = _Plain(file, encoding="latin1").load()
    except Exception as error:  # forged bytes raise what they like
        raise DataError(f"{path} is not read: {' '.join(str(error).split())[:200] or type(error).__name__}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a {type(found).__name__}, where CIFAR has a dictionary")
    return found


def fetch_archive(origin: Any, root: Path) -> None:
    """Fetch the archive of a set, check its MD5 checksum, and take out of it the files that the set consists of."""
    from torchvision.datasets.utils import download_url

    names = [name for name, _ in (*origin.train_list, *origin.test_list)]
    names += [origin.meta["filename"]] if hasattr(origin, "meta") else [origin.class_names_file]
    if all((root / origin.base_folder / name).is_file() for name in names):
        return
    download_url(origin.url, str(root), origin.filename, origin.tgz_md5)
    take(root / origin.filename, [f"{origin.base_folder}/{name}" for name in names], root)


def take(archive: Path, names: Collection[str], folder: Path) -> None:
    """Write the members of an archive that have these very names into ``folder``; all others are left alone.

    Raises:
        DataError: a name is missing, or is a link, a device or a folder in the archive; or it is no archive.
    """
    left = set(names)
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                if member.name not in left:
                    continue
                content = opened.extractfile(member) if member.isreg() else None
                if content is None:
                    raise DataError(f"{archive}: {member.name} is no plain file in it")
                _write(content, folder / member.name)
                left.remove(member.name)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{archive} cannot be read: {error}") from error
    if left:
        raise DataError(f"{archive} lacks {', '.join(sorted(left))}")


def _write(content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        with partial.open("xb") as file:  # "x": not through a link that waits there
            shutil.copyfileobj(content, file, 1 << 20)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_mnist(origin: Any, root: Path, part: str, download: bool) -> TensorImages:
    """A part of a set of the MNIST family, from ``root/NAME/raw``; files there may be gzipped or not.

    Raises:
        DataError: a file is not there, or is not what it should be.
        OSError, RuntimeError: the download failed.
    """
    folder = root / origin.__name__ / "raw"
    resources = origin.resources[:2] if part == "train" else origin.resources[2:]
    images, labels = (
        read_idx(_idx(origin, folder, name, digest, download), dimensions)
        for (name, digest), dimensions in zip(resources, (3, 1), strict=True)
    )
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} {part} images and {len(labels)} labels")
    if len(labels) and labels.max() >= len(origin.classes):
        raise DataError(f"{folder}: a {part} label is {labels.max()}, of {len(origin.classes)} classes")
    return TensorImages(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)), tuple(origin.classes)
    )


def _idx(origin: Any, folder: Path, name: str, digest: str, download: bool) -> Path:
    from torchvision.datasets.utils import download_url

    packed, unpacked = folder / name, folder / name.removesuffix(".gz")
    if unpacked.is_file():
        return unpacked
    if not download and not packed.is_file():
        raise DataError(f"{unpacked} is missing")
    failed: list[str] = []
    for mirror in origin.mirrors if download else ():
        try:
            download_url(f"{mirror}{name}", str(folder), name, digest)
            break
        except (URLError, OSError, RuntimeError) as error:
            failed.append(f"{mirror}{name}: {error}")
    else:
        if download:
            raise OSError("; ".join(failed))
    return packed
