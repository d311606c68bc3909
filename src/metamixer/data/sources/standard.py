"""Load standard data sets with torchvision, from local files or downloads."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from metamixer.core.standard_sets import STANDARD
from metamixer.data.errors import DataError
from metamixer.data.files.load_files import Reading
from metamixer.data.image_set import TensorImages, conform
from metamixer.data.sources import fashion_mini
from metamixer.data.sources.idx import FILES, read_idx
from metamixer.data.splits import Data, HoldOut, assemble


def load_standard(name: str, root: Path, download: bool, how: Reading, **hold: Unpack[HoldOut]) -> Data:
    """Load a data set of ``STANDARD``.

    Raises:
        DataError: the files are missing; the message names the folder and how to download them.
    """
    standard = STANDARD[name]
    if standard.origin is None:
        train, test = fashion_mini.fashion_mini()
    elif name == "fashion-mnist" and (folder := _raw_folder(root)) is not None:
        train, test = _raw(folder, "train"), _raw(folder, "test")
    else:
        train, test = (_from_torchvision(name, standard.origin, root, download, part) for part in ("train", "test"))
    train, test = (
        TensorImages(conform(part.images, how.image_size, how.channels, how.fit), part.labels, part.classes)
        for part in (train, test)
    )
    return assemble(name, train, None, test, mirror=standard.mirror, **hold)


def _raw_folder(root: Path) -> Path | None:
    names = [name for pair in FILES.values() for name in pair]
    for folder in (root, root / "fashion-mnist"):
        if all((folder / name).is_file() for name in names):
            return folder
    return None


def _raw(folder: Path, part: str) -> TensorImages:
    images, labels = (read_idx(folder / name, dimensions) for name, dimensions in zip(FILES[part], (3, 1), strict=True))
    return TensorImages(
        torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)), fashion_mini.CLASSES
    )


def _from_torchvision(name: str, origin: str, root: Path, download: bool, part: str) -> TensorImages:
    import torchvision.datasets as sets

    chosen: dict[str, Any] = {"split": part} if origin in ("SVHN", "STL10") else {"train": part == "train"}
    try:
        with _only_below_the_root():
            found = getattr(sets, origin)(root=str(root), download=download, **chosen)
    except ImportError as error:
        raise DataError(f"{name!r} needs a package that is not installed: {error}") from error
    except Exception as error:  # damaged files raise many types, such as AssertionError and UnpicklingError
        looked = f"{name!r} was not found whole in {root.resolve()}"
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        if download:
            raise DataError(f"{looked}, and the download failed: {reason}") from error
        raise DataError(f"{looked}; download=True fetches it, root=… looks elsewhere ({reason})") from error
    images = torch.as_tensor(found.data)
    if images.ndim == 3:  # the MNIST family
        images = images[:, None]
    elif origin in ("CIFAR10", "CIFAR100"):
        images = images.permute(0, 3, 1, 2)
    labels = torch.as_tensor(found.labels if "split" in chosen else found.targets).long()
    classes = tuple(getattr(found, "classes", None) or map(str, range(int(labels.max()) + 1)))
    try:
        return TensorImages(images, labels, classes)
    except DataError as error:
        raise DataError(f"{name!r} in {root.resolve()}: {error}") from error


@contextmanager
def _only_below_the_root() -> Iterator[None]:
    """Let :mod:`tarfile` refuse members outside of the folder, because torchvision extracts complete archives."""
    if not hasattr(tarfile, "data_filter"):  # Python before 3.11.4
        yield
        return
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before
