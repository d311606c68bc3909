"""The official CIFAR-10-C and CIFAR-100-C files: a local folder of ``.npy`` files.

Hendrycks and Dietterich, arXiv 1903.12261. Each ``KIND.npy`` holds 5 x N images ``(H, W, C)`` uint8, in order of
severity; ``labels.npy`` holds their classes. Pickled content is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metamixer.data.errors import DataError
from metamixer.evaluation.robustness.corruptions import CORRUPTIONS, SEVERITIES


@dataclass(frozen=True)
class CifarC:
    """The files of the fifteen kinds.

    Args:
        folder: the folder of the files.
        labels: ``(N,)`` int64, the same for every kind and severity.
    """

    folder: Path
    labels: Tensor

    @classmethod
    def open(cls, folder: Path, labels: Tensor) -> CifarC:
        """Check all files, without reading pixels.

        Args:
            folder: the folder of the files.
            labels: ``(N,)`` labels of the test images of the run, in order.

        Raises:
            DataError: a file is missing or has another shape or type, or the labels are not those of the run, which
                then has other classes or other data.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        if missing := [name for name in (*CORRUPTIONS, "labels") if not (folder / f"{name}.npy").is_file()]:
            raise DataError(
                f"{folder} has no {', '.join(f'{name}.npy' for name in missing)}; expected the folder of CIFAR-10-C"
            )
        count = len(labels)
        found = torch.from_numpy(np.array(_load(folder / "labels.npy")).astype(np.int64))
        if found.shape != (5 * count,) or not all(torch.equal(part, labels) for part in found.view(5, count)):
            raise DataError(
                f"{folder / 'labels.npy'} does not list the classes of the {count} test images of this run five times; "
                "expected a run on cifar10"
            )
        for kind in CORRUPTIONS:
            shape, dtype = (images := _load(folder / f"{kind}.npy")).shape, images.dtype
            if len(shape) != 4 or shape[0] != 5 * count or shape[3] != 3 or dtype != np.uint8:
                raise DataError(f"{folder / kind}.npy holds {dtype} {shape}; expected uint8 {(5 * count, 32, 32, 3)}")
        return cls(folder, labels)

    def images(self, kind: str, severity: int, rows: Tensor) -> Tensor:
        """Read corrupted images: ``(B,)`` indices of test images -> ``(B, C, H, W)`` uint8."""
        if severity not in SEVERITIES:
            raise ValueError(f"severity {severity!r}: expected 1 to 5")
        first = (severity - 1) * len(self.labels)
        pixels = _load(self.folder / f"{kind}.npy")[first + rows.numpy()]
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)


def _load(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Memory-map a file instead of reading it, because it has 150 MB."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is not a numpy array: {error}") from error
