"""Data sets of the Hugging Face library ``datasets``, from its hub or saved to disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metamixer.data.errors import DataError
from metamixer.data.files.folder_scan import listed
from metamixer.data.files.load_files import Reading, present, read
from metamixer.data.splits import Data, assemble

SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True, eq=False)
class Encoded(Sequence[bytes]):
    """The image column of a data set as undecoded files, so that they are read with the same care as any."""

    column: Any

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: Any) -> Any:
        """The content of file ``row``."""
        value = self.column[row]
        value = value if isinstance(value, dict) else {}
        if value.get("bytes") is not None:
            return value["bytes"]
        return Path(value["path"]) if value.get("path") else b""


def load_hf(
    name: str,
    download: bool,
    how: Reading,
    *,
    val_share: float,
    seed: int,
    train_limit: int | None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Data:
    """A data set by its name on the hub, or a folder that ``save_to_disk`` wrote.

    Images without a label (-1) are left out, as the test splits of some competitions have them.

    Raises:
        DataError: if ``datasets`` is not installed, the set is not there, it has no training split, or its columns
            do not tell which holds images and which classes.
    """
    splits = _open(name, download)
    found = {part: next((splits[key] for key in keys if key in splits), None) for part, keys in SPLITS.items()}
    if found["train"] is None:
        raise DataError(f"hf:{name}: has {', '.join(map(repr, splits)) or 'nothing'} but no 'train' to learn from")
    features = found["train"].features
    image = _column(name, features, "Image", image_column, "image_column")
    label = _column(name, features, "ClassLabel", label_column, "label_column")
    classes = _classes(found["train"], label)
    parts: dict[str, tuple[Sequence[bytes], Tensor]] = {}
    notes: tuple[str, ...] = ()
    for part, split in found.items():
        if split is None:
            continue
        labels = _labels(f"hf:{name}: {part}", split, label, classes)
        known = (labels >= 0).nonzero().flatten()
        if len(known) < len(labels):
            notes += (f"{len(labels) - len(known)} images of {part} have no label and were left out",)
            split = split.select(known.tolist())
        if len(known):
            parts[part] = Encoded(_undecoded(split, image)), labels[known]
    sets, skipped = read(parts, classes, how)
    train = present(sets, "train")
    if train is None:
        raise DataError(f"hf:{name}: no training image has a label and can be read")
    if skipped:
        notes += (f"{len(skipped)} images skipped that cannot be read",)
    return assemble(
        f"hf:{name}",
        train,
        present(sets, "val"),
        present(sets, "test"),
        val_share=val_share,
        seed=seed,
        train_limit=train_limit,
        compare=True,
        notes=notes,
        skipped=skipped,
    )


def _open(name: str, download: bool) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hf:{name} needs the package 'datasets': pip install 'metamixer[hf]'") from error
    try:
        if Path(name).is_dir():
            found = datasets.load_from_disk(name)
        elif download:
            found = datasets.load_dataset(name)
        else:
            raise DataError(
                f"hf:{name} is no folder here; download=True takes it from the hub, or from the hub's cache if it is "
                "there, and hf:FOLDER reads what save_to_disk wrote"
            )
    except DataError:
        raise
    except Exception as error:  # the library raises its own and those of three others
        raise DataError(f"hf:{name} cannot be opened: {error}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _column(name: str, features: Any, kind: str, asked: str | None, option: str) -> str:
    shown = ", ".join(f"{column!r} ({type(feature).__name__})" for column, feature in features.items())
    if asked is not None:
        if asked not in features:
            raise DataError(f"hf:{name}: {option}={asked!r} is not a column; there are {shown}")
        return asked
    fitting = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if len(fitting) != 1:
        raise DataError(f"hf:{name}: {len(fitting)} columns are a {kind}; choose one by {option}=… from {shown}")
    return str(fitting[0])


def _undecoded(split: Any, image: str) -> Any:
    import datasets

    return split.with_format(None).cast_column(image, datasets.Image(decode=False))[image]


def _named(split: Any, label: str) -> list[Any]:
    """The class of every image by name, or its plain value where the column has no names; None: no label."""
    values = list(split.with_format(None)[label])
    names = getattr(split.features[label], "names", None)
    if names is None:
        return values
    return [None if value is None or value < 0 else names[value] for value in values]


def _classes(split: Any, label: str) -> tuple[str, ...]:
    names = getattr(split.features[label], "names", None)
    if names is None:
        names = sorted({value for value in _named(split, label) if value is not None})
    return tuple(map(str, names))


def _labels(where: str, split: Any, label: str, classes: tuple[str, ...]) -> Tensor:
    """``(N,)`` int64, -1 without a label. Looked up by name, because splits may number their classes differently."""
    index = {name: position for position, name in enumerate(classes)}
    named = [None if value is None else str(value) for value in _named(split, label)]
    if extra := sorted({name for name in named if name is not None} - set(classes)):
        raise DataError(f"{where}: has {listed(extra)}, not among the classes of train: {listed(classes)}")
    return torch.tensor([-1 if name is None else index[name] for name in named], dtype=torch.int64)
