"""The standard sets, from files that one has or asks for, as torchvision names and places them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metamixer import _torchvision
from metamixer.datasets import mini
from metamixer.datasets.data import Data, assemble
from metamixer.datasets.errors import DataError
from metamixer.datasets.idx import FILES, read_idx
from metamixer.datasets.images import TensorImages, conform
from metamixer.datasets.read import Reading
from metamixer.datasets.torchvision_files import fetch_archive, read_cifar, read_mnist


@dataclass(frozen=True)
class Standard:
    """A standard set.

    Args:
        origin: the class in ``torchvision.datasets``; None for the set that comes with the package.
        summary: what it is, in a line.
        mirror: whether a mirrored image is still one of its class.
    """

    origin: str | None
    summary: str
    mirror: bool = True


STANDARD = {
    "fashion-mini": Standard(None, "7,000 images of Fashion-MNIST, grey 28x28, 10 classes; comes with the package"),
    "mnist": Standard("MNIST", "70,000 handwritten digits, grey 28x28", mirror=False),
    "fashion-mnist": Standard("FashionMNIST", "70,000 pieces of clothing, grey 28x28, 10 classes"),
    "kmnist": Standard("KMNIST", "70,000 cursive Japanese letters, grey 28x28, 10 classes", mirror=False),
    "cifar10": Standard("CIFAR10", "60,000 animals and vehicles, colour 32x32, 10 classes"),
    "cifar100": Standard("CIFAR100", "60,000 things and creatures, colour 32x32, 100 classes"),
    "svhn": Standard("SVHN", "99,289 house-number digits, colour 32x32 (without the 'extra' part)", mirror=False),
    "stl10": Standard("STL10", "13,000 animals and vehicles, colour 96x96, 10 classes (without the unlabelled part)"),
}


def load_standard(
    name: str, root: Path, download: bool, how: Reading, *, val_share: float, seed: int, train_limit: int | None
) -> Data:
    """A set of ``STANDARD``.

    Raises:
        DataError: says which folder was looked at and what brings the files there.
    """
    standard = STANDARD[name]
    if standard.origin is None:
        train, test = mini.fashion_mini()
    elif name == "fashion-mnist" and (folder := _raw_folder(root)) is not None:
        train, test = _raw(folder, "train"), _raw(folder, "test")
    else:
        train, test = (_from_torchvision(name, standard.origin, root, download, part) for part in ("train", "test"))
    train, test = (
        TensorImages(conform(part.images, how.image_size, how.channels), part.labels, part.classes)
        for part in (train, test)
    )
    return assemble(
        name, train, None, test, val_share=val_share, seed=seed, train_limit=train_limit, mirror=standard.mirror
    )


def _raw_folder(root: Path) -> Path | None:
    names = [name for pair in FILES.values() for name in pair]
    for folder in (root, root / "fashion-mnist"):
        if all((folder / name).is_file() for name in names):
            return folder
    return None


def _raw(folder: Path, part: str) -> TensorImages:
    images, labels = (read_idx(folder / name, dimensions) for name, dimensions in zip(FILES[part], (3, 1), strict=True))
    return TensorImages(torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64)), mini.CLASSES)


def _from_torchvision(name: str, origin: str, root: Path, download: bool, part: str) -> TensorImages:
    _torchvision.mend()
    import torchvision.datasets as sets

    which: Any = getattr(sets, origin)
    try:
        if origin in ("MNIST", "FashionMNIST", "KMNIST"):
            return read_mnist(which, root, part, download)
        if download and origin != "SVHN":
            fetch_archive(which, root)
        if origin in ("CIFAR10", "CIFAR100"):
            return read_cifar(which, root, part)
        # STL-10 are plain bytes and SVHN a table of MATLAB; both are read if their checksums are right.
        found = which(root=str(root), split=part, download=download and origin == "SVHN")
    except ImportError as error:
        raise DataError(f"{name!r} needs a package that is not installed: {error}") from error
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        looked = f"{name!r} was not found whole in {root.resolve()}"
        if download:
            raise DataError(f"{looked}, and the download failed: {error}") from error
        raise DataError(f"{looked}; download=True fetches it, root=… looks elsewhere ({error})") from error
    labels: Tensor = torch.as_tensor(found.labels).long()
    classes = tuple(getattr(found, "classes", None) or map(str, range(int(labels.max()) + 1)))
    return TensorImages(torch.as_tensor(found.data), labels, classes)
