"""Load a folder of images as the splits of one task."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import torch

from metamixer.core.text import clean, counted, quoted
from metamixer.data.class_sampling import split
from metamixer.data.errors import DataError
from metamixer.data.files.cache_folder import cache_folder
from metamixer.data.files.folder_scan import FolderLayout, scan
from metamixer.data.files.label_file import LabelFiles, scan_labelled
from metamixer.data.files.load_files import Reading, read
from metamixer.data.splits import Data, HoldOut, assemble, without

TEST_SHARE = 0.1
"""Share of every class that becomes the test split in a folder without splits."""


def load_folder(
    root: Path, how: Reading, layout: FolderLayout, labels: LabelFiles | None, **hold: Unpack[HoldOut]
) -> Data:
    """Load a folder of images, with splits and classes as found by :func:`scan`.

    In a folder without splits a tenth of every class becomes the test split, independent of the seed, so that results
    of several seeds are measured on the same images.

    Raises:
        DataError: see :func:`scan` and :func:`metamixer.data.files.load_files.read`.
    """
    folder = cache_folder(how.cache)
    if folder is not None and folder.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"data.cache={clean(folder)} is inside of the data, {clean(root)}; a folder outside is accepted"
        )
    found = scan(root, layout) if labels is None else scan_labelled(root, layout, labels)
    files = {part: (files, torch.tensor(labels)) for part, (files, labels) in found.parts.items()}
    sets = read(files, found.classes, how)
    notes = (*found.notes, *sets.notes)
    train, val, test = (sets.get(part) for part in ("train", "val", "test"))
    if (whole := sets.get("all")) is not None:
        kept, held = split(whole.labels, TEST_SHARE, seed=0)
        train = whole.subset(kept)
        test = whole.subset(held) if len(held) else None
        notes += (f"{len(held)} of {len(kept) + len(held)} images held out for testing, the same for every seed",)
        notes += without("testing", test)
    counts = torch.bincount(train.labels, minlength=len(found.classes)) if train else torch.zeros(len(found.classes))
    gone = [name for name, count in zip(found.classes, counts.tolist(), strict=True) if not count]
    if train is None or gone:
        cause = f"; the first cause: {': '.join(sets.skipped[0])}" if sets.skipped else ""
        raise DataError(f"{clean(root)}: of {quoted(gone)} no training image can be read{cause}")
    if sets.skipped:
        notes += (f"{counted(len(sets.skipped), 'file')} skipped that cannot be read",)
    return assemble(
        str(root),
        train,
        val,
        test,
        **hold,
        prepare=sets.prepare(how),
        scale=how.scale,
        notes=notes,
        skipped=sets.skipped,
    )
