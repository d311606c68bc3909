"""Data sets of the Hugging Face library ``datasets``, from its hub or saved to disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from metamixer.core.text import counted, quoted
from metamixer.data.errors import DataError
from metamixer.data.files.load_files import Reading, read
from metamixer.data.splits import Data, HoldOut

SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}


LABELS = ("label", "labels", "class")
"""Names of columns of names or numbers that are taken as the classes."""
SAVED = ("dataset_dict.json", "state.json")
TABLES = tuple(f"{depth}*.{ending}" for depth in ("", "*/", "*/*/") for ending in ("parquet", "arrow"))


class Columns(NamedTuple):
    """The names of the columns of images and classes; None: the only column that fits."""

    image: str | None = None
    label: str | None = None


def is_table_folder(folder: Path) -> bool:
    """Whether a folder holds parquet or arrow files, as written by ``save_to_disk`` or in repositories of data sets."""
    return folder.is_dir() and any(next(folder.glob(pattern), None) for pattern in TABLES)


@dataclass(frozen=True, eq=False)
class Encoded(Sequence[bytes]):
    """The image column of a data set as undecoded files, which are then read like any other image file."""

    column: Any
    version: str = ""

    def known_by(self, row: int) -> str | None:
        """Key of file ``row`` in the cache: the fingerprint of the set and the row; None for a separate file."""
        return None if self._apart else f"{self.version}\0{row}"

    @cached_property
    def _apart(self) -> bool:
        return isinstance(self[0], Path)

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
    columns: Columns,
    **hold: Unpack[HoldOut],
) -> Data:
    """Load a data set from the hub, from a folder written by ``save_to_disk``, or from parquet or arrow files.

    Images without a label (-1), as in the test splits of some competitions, are left out.

    Raises:
        DataError: if ``datasets`` is not installed, the set is not there, it has no training split, or its columns
            do not show which holds images and which classes.
    """
    splits = _open(name, download)
    found = {part: next((splits[key] for key in keys if key in splits), None) for part, keys in SPLITS.items()}
    if found["train"] is None:
        raise DataError(f"hf:{name}: has {', '.join(map(repr, splits)) or 'nothing'} but no 'train' to learn from")
    image, label = chosen_columns(name, found["train"].features, columns)
    classes = _classes(found["train"], label)
    parts: dict[str, tuple[Sequence[bytes], Tensor]] = {}
    notes: tuple[str, ...] = ()
    for part, split in found.items():
        if split is None:
            continue
        labels = _labels(f"hf:{name}: {part}", split, label, classes)
        known = (labels >= 0).nonzero().flatten()
        if len(known) < len(labels):
            notes += (f"{counted(len(labels) - len(known), 'image')} of {part} without a label left out",)
            split = split.select(known.tolist())
        if len(known):
            parts[part] = Encoded(_undecoded(split, image), f"{split._fingerprint} {image}"), labels[known]
    return read(parts, classes, how).assemble(f"hf:{name}", how, notes, **hold)


def library(name: str) -> Any:
    """The package ``datasets``; ``DataError`` if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "datasets"
        why = "" if missing else f", which cannot be imported here ({error})"
        raise DataError(f"hf:{name} needs the package 'datasets'{why}: pip install 'metamixer[hf]'") from error
    return datasets


def chosen_columns(name: str, features: Any, columns: Columns) -> tuple[str, str]:
    """The columns of images and labels; ``DataError`` if they are ambiguous or missing."""
    image = columns.image or _plain(name, features, "image", _is_image, ())
    label = columns.label or _plain(name, features, "label", _is_label, LABELS)
    for option, column in (("image_column", image), ("label_column", label)):
        if column not in features:
            raise DataError(f"hf:{name}: data.{option}={column!r} is not a column; there are {_shown(features)}")
    if not _is_image(features[image]):
        raise DataError(f"hf:{name}: data.image_column={image!r} holds no images; there are {_shown(features)}")
    return image, label


def _open(name: str, download: bool) -> dict[str, Any]:
    datasets = library(name)
    try:
        if any((Path(name) / file).is_file() for file in SAVED):
            found = datasets.load_from_disk(name)
        elif is_table_folder(Path(name)) or download:
            found = datasets.load_dataset(name)
        else:
            raise DataError(
                f"hf:{name} is not a folder here; download=True takes it from the hub, or from the hub's cache if it "
                "is there, and hf:FOLDER reads what save_to_disk wrote, or parquet and arrow files"
            )
    except DataError:
        raise
    except Exception as error:  # the library raises its own and those of three others
        raise DataError(f"hf:{name} cannot be opened: {error}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _plain(name: str, features: Any, what: str, fits: Callable[[Any], bool], names: tuple[str, ...]) -> str:
    """The only column that fits, or one with a usual name."""
    fitting = [column for column, feature in features.items() if fits(feature)]
    fitting = fitting or [column for column in names if column in features]
    if len(fitting) != 1:
        raise DataError(
            f"hf:{name}: {len(fitting)} columns are a {'ClassLabel' if what == 'label' else 'Image'}; choose one by "
            f"data.{what}_column=NAME: {_shown(features)}"
        )
    return str(fitting[0])


def _shown(features: Any) -> str:
    return ", ".join(f"{column!r} ({_kind(feature)})" for column, feature in features.items())


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", "")) if type(feature).__name__ == "Value" else type(feature).__name__


def _is_image(feature: Any) -> bool:
    """Whether a column holds images; parquet files without metadata hold encoded files, with or without a path."""
    return _kind(feature) in ("Image", "binary", "large_binary") or (isinstance(feature, dict) and "bytes" in feature)


def _is_label(feature: Any) -> bool:
    return _kind(feature) == "ClassLabel"


def _undecoded(split: Any, image: str) -> Any:
    import datasets

    return split.with_format(None).cast_column(image, datasets.Image(decode=False))[image]


def _named(split: Any, label: str) -> list[Any]:
    """The class name of every image, or its value if the column has no names; None: no label."""
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
    """``(N,)`` int64, -1 for no label. Looked up by name, because splits can number their classes differently."""
    index = {name: position for position, name in enumerate(classes)}
    named = [None if value is None else str(value) for value in _named(split, label)]
    if extra := sorted({name for name in named if name is not None} - set(classes)):
        raise DataError(f"{where}: has {quoted(extra)}, not among the classes of train: {quoted(classes)}")
    return torch.tensor([-1 if name is None else index[name] for name in named], dtype=torch.int64)
