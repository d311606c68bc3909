"""A folder of images as the splits of one task."""

from __future__ import annotations

from pathlib import Path

import torch

from metamixer.core.text import clean
from metamixer.data.class_sampling import split
from metamixer.data.errors import DataError
from metamixer.data.files.folder_scan import listed, scan
from metamixer.data.files.load_files import Reading, present, read
from metamixer.data.splits import Data, assemble

TEST_SHARE = 0.1
"""Of a folder without splits, this part of every class is the test split."""


def load_folder(root: Path, how: Reading, *, val_share: float, seed: int, train_limit: int | None) -> Data:
    """A folder of images as :func:`scan` finds it.

    Of a folder without splits a tenth of every class becomes the test split, the same one for every seed, so
    that results over several seeds are of the same images.

    Raises:
        DataError: see :func:`scan` and :func:`metamixer.data.files.load_files.read`.
    """
    layout = scan(root)
    parts = {part: (files, torch.tensor(labels)) for part, (files, labels) in layout.parts.items()}
    sets, skipped = read(parts, layout.classes, how)
    notes = layout.notes
    train, val, test = (present(sets, part) for part in ("train", "val", "test"))
    if "all" in sets:
        kept, held = split(sets["all"].labels, TEST_SHARE, seed=0)
        train = sets["all"].subset(kept)
        test = sets["all"].subset(held) if len(held) else None
        notes += (f"{len(held)} of {len(kept) + len(held)} images held out for testing, the same for every seed",)
    counts = torch.bincount(train.labels, minlength=len(layout.classes)) if train else torch.zeros(len(layout.classes))
    gone = [name for name, count in zip(layout.classes, counts.tolist(), strict=True) if not count]
    if train is None or gone:
        raise DataError(
            f"{clean(root)}: of {listed(gone)} no image can be read; the first cause: {': '.join(skipped[0])}"
        )
    if skipped:
        notes += (f"{len(skipped)} files skipped that cannot be read",)
    return assemble(
        str(root),
        train,
        val,
        test,
        val_share=val_share,
        seed=seed,
        train_limit=train_limit,
        compare=True,
        notes=notes,
        skipped=skipped,
    )
