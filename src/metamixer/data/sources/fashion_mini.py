"""``fashion-mini``, the bundled data set: a tenth of Fashion-MNIST, for trials without a download."""

from __future__ import annotations

from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from metamixer.data.errors import DataError
from metamixer.data.image_set import TensorImages

FILE = Path(__file__).parent / "bundled" / "fashion-mini.npz"
SHA256 = "c83f4eed28ce8fa52a15da8a0f126c920d2635b82fb3a2e1104b8edc5ef430d7"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def fashion_mini(file: Path = FILE) -> tuple[TensorImages, TensorImages]:
    """The training split (6,000 images, 600 per class) and the test split (1,000 images, 100 per class).

    28x28 grey images of Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747), selected by
    ``scripts/make_fashion_mini.py``. Results are not comparable with results on the full set.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; reinstalling metamixer restores it") from error
    if sha256(content).hexdigest() != SHA256:
        raise DataError(f"{file}: damaged (its SHA-256 is not {SHA256[:12]}…); reinstalling metamixer restores it")
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        train, test = (
            TensorImages(
                torch.from_numpy(arrays[f"{part}_images"])[:, None],
                torch.from_numpy(arrays[f"{part}_labels"].astype(np.int64)),
                CLASSES,
            )
            for part in ("train", "test")
        )
    return train, test
