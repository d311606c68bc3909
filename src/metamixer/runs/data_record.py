"""``data.json``: the place, classes and fingerprint of the data that a run was trained with.

The place of the data does not affect what is computed: a run can be used with the same data in another place.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections.abc import Collection, Sequence
from hashlib import sha256
from pathlib import Path

from pydantic import BaseModel, ValidationError

from metamixer.config.data_section import DataSection, is_place, without_kind
from metamixer.config.recipe import Recipe
from metamixer.core.files import write_whole
from metamixer.core.text import clean, counted, listed
from metamixer.data import DATASETS, Data, DataError, FolderImages, ImageSet, load, with_label_noise
from metamixer.data.files.addresses import find
from metamixer.data.files.folder_images import shards_of
from metamixer.data.sources.webdataset import PREFIX as WDS
from metamixer.data.splits import SPLITS
from metamixer.data.splits import Split as SplitName

FILE = "data.json"


class Split(BaseModel):
    """A split: the number of images, and checksums of labels, file names and file sizes, in order."""

    images: int
    labels: str
    files: str | None = None


class DataRecord(BaseModel):
    """The content of ``data.json``.

    Args:
        name, root: as in the recipe; paths are absolute.
        classes, channels, size, mean, std: as of the data.
        splits: the splits by name.
        disk_crops: whether training images on disk are cropped at random without ``data.crop_scale``, as in runs from
            before that setting existed.
        skipped: files in ``name`` that ``data.on_error=skip`` left out; None: unknown.
    """

    name: str
    root: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Split]
    disk_crops: bool = True
    skipped: tuple[str, ...] | None = None

    @classmethod
    def of(cls, data: Data, section: DataSection, *, disk_crops: bool = False) -> DataRecord:
        """The record of data that were loaded by the section."""
        place = absolute(section)
        kind, path = without_kind(place.name)
        splits = {part: getattr(data, part) for part in SPLITS}
        return cls(
            name=kind + path,
            root=place.root,
            classes=data.classes,
            channels=data.channels,
            size=data.size,
            mean=tuple(data.mean),
            std=tuple(data.std),
            splits={part: _split(images, Path(path)) for part, images in splits.items() if images is not None},
            disk_crops=disk_crops,
            skipped=tuple(file.removeprefix(_inside(section)) for file, _ in data.skipped),
        )

    @classmethod
    def read(cls, folder: Path) -> DataRecord | None:
        """The record of a run; None for runs of older versions without one. ``DataError`` if it is damaged."""
        path = folder / FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DataError(f"{path} is damaged: {error.errors()[0]['msg']}") from error

    def write(self, folder: Path) -> None:
        """Write it to the folder of a run."""
        write_whole(folder / FILE, self.model_dump_json(indent=1) + "\n")

    def changes(self, now: DataRecord, parts: Sequence[str]) -> list[str]:
        """Descriptions of how other data differ from these in the given splits."""
        found = []
        if self.classes != now.classes:
            found.append(f"classes {listed(map(clean, now.classes))}, were {listed(map(clean, self.classes))}")
        if (self.channels, self.size) != (now.channels, now.size):
            found.append(f"images of {(now.channels, *now.size)}, were {(self.channels, *self.size)}")
        for part in parts:
            before, after = self.splits.get(part), now.splits.get(part)
            if before == after:
                continue
            now_here, then = (0 if one is None else one.images for one in (after, before))
            other = "other images or labels" if now_here == then else f"{counted(now_here, 'image')}, were {then}"
            found.append(f"{part}: {other}")
        return found


Scale = tuple[tuple[float, ...], tuple[float, ...]]


def load_data(
    recipe: Recipe,
    splits: Collection[SplitName] = SPLITS,
    scale: Scale | None = None,
    *,
    section: DataSection | None = None,
    skipped: Collection[str] | None = None,
    cache_writes: bool = True,
) -> Data:
    """The recipe's data; ``DataError`` says what is wrong with them.

    Args:
        recipe: the recipe of a run.
        splits: the splits to decode now.
        scale: mean and standard deviation of the training images, if known.
        section: used instead of the recipe's section, with the current place of the data.
        skipped: the unreadable files, if known; otherwise images are decoded to find them.
        cache_writes: store decoded images that are not in the cache yet.
    """
    data = section or recipe.data
    loaded = load(
        data.name,
        root=data.root,
        download=data.download,
        val_share=data.val_share,
        seed=data.seed,
        image_size=data.size,
        channels=data.channels,
        on_error=data.on_error if skipped is None else "stop",
        train_limit=data.train_limit,
        layout=data.layout,
        image_column=data.image_column,
        label_column=data.label_column,
        labels=data.labels,
        labels_column=data.labels_column,
        stream=data.stream,
        fit=data.fit,
        white=data.white,
        bits=data.bits,
        splits=splits,
        scale=scale,
        crops=data.crop_scale is not None,
        skipped=skipped or (),
        cache=data.cache,
        cache_size=data.cache_size,
        cache_writes=cache_writes,
        buffer=data.buffer,
    )
    return with_label_noise(loaded, data.label_noise, data.label_noise_kind, data.seed)


def section_of(recipe: Recipe, folder: Path, at: str | None = None) -> DataSection:
    """The data section of a run with the current place of its data: ``at``, or their place during training.

    Args:
        recipe: the recipe of the run.
        folder: the folder of the run.
        at: the folder of the data, or of the standard sets.
    """
    section = recipe.data
    kind, name = without_kind(section.name)
    if at is not None:
        own = {"root": at} if name in DATASETS else {"name": kind + without_kind(at)[1]}
        return section.model_copy(update=own)
    record = DataRecord.read(folder)
    here = absolute(section)
    if record is not None and (here.name, here.root) != (record.name, record.root):
        section = section.model_copy(update={"name": record.name, "root": record.root})
    return section


def there(section: DataSection, folder: Path) -> DataSection:
    """The section itself, if the data of the run in ``folder`` exist there; otherwise ``DataError``."""
    place = without_kind(section.name)[1]
    places = find(place) if section.name.startswith(WDS) else [os.path.expanduser(place)]
    if is_place(section.name) and not any(map(os.path.exists, places)):
        if section.name.startswith(WDS):
            raise DataError(
                f"{clean(place)}: no such shards; --data wds:PATTERN says where the data of {folder} are now"
            )
        raise DataError(f"{clean(place)}: no such folder; --data FOLDER says where the data of {folder} are now")
    return section


def data_of(
    recipe: Recipe,
    folder: Path,
    at: str | None = None,
    *,
    splits: Collection[SplitName] = SPLITS,
    check: bool = True,
) -> Data:
    """The data of a run, checked against its record, which also has mean and standard deviation.

    Args:
        recipe: the recipe of the run.
        folder: the folder of the run.
        at: the current place of the data; None: their place during training.
        splits: see :func:`load_data`.
        check: compare classes, validation and test images with the run's record.

    Raises:
        DataError: the data are missing, or are not those of the training.
    """
    section = there(section_of(recipe, folder, at), folder)
    record = DataRecord.read(folder)
    scale = None if record is None else (record.mean, record.std)
    skipped = None
    if record is not None and record.skipped is not None:
        skipped = {name for file in record.skipped for name in (file, _inside(section) + file)}
    data = load_data(recipe, splits, scale, section=section, skipped=skipped, cache_writes=False)
    if check:
        check_data(data, section, folder, ("val", "test"))
    return data


def check_data(data: Data, section: DataSection, folder: Path, parts: Sequence[str] = SPLITS) -> None:
    """Compare data with the record of a run.

    Raises:
        DataError: they differ; the message says how.

    Warns:
        UserWarning: the run has no record.
    """
    record = DataRecord.read(folder)
    if record is None:
        warnings.warn(f"{folder} has no {FILE}: whether its data have changed is not known", stacklevel=2)
    elif found := record.changes(DataRecord.of(data, section), parts):
        raise DataError(
            f"{clean(section.name)}: the data have changed since {folder} was trained with {clean(record.name)}: "
            f"{'; '.join(found)}; accepted are the same images, in --data FOLDER if they were moved"
        )


def absolute(section: DataSection) -> DataSection:
    """The data section with absolute paths."""
    kind, name = without_kind(section.name)
    place = os.path.abspath(os.path.expanduser(name)) if is_place(section.name) else name
    root = os.path.abspath(os.path.expanduser(section.root)) if name in DATASETS else section.root
    return section.model_copy(update={"name": kind + place, "root": root})


def _inside(section: DataSection) -> str:
    """The folder, as it stands before file names in messages."""
    return clean(Path(without_kind(section.name)[1]).expanduser()) + os.sep


def _split(images: ImageSet, place: Path) -> Split:
    labels = sha256(images.labels.cpu().numpy().astype("<i8").tobytes()).hexdigest()[:16]
    if isinstance(images, FolderImages) and (shards := shards_of(images)) is not None:
        return Split(images=len(images), labels=labels, files=shards.digest(images.rows))
    files = _files(images)
    if not files:
        return Split(images=len(images), labels=labels)
    lines = (f"{os.path.relpath(file, place)}\t{os.stat(file).st_size}\n".replace(os.sep, "/") for file in files)
    names = unicodedata.normalize("NFC", "".join(lines)).encode(errors="surrogateescape")
    return Split(images=len(images), labels=labels, files=sha256(names).hexdigest()[:16])


def _files(images: ImageSet) -> list[Path]:
    """The files of a set in order; empty if it was not read from single files."""
    files, rows = getattr(images, "files", None), getattr(images, "rows", None)
    if not files or not isinstance(files[0], Path):
        return []
    return list(files) if rows is None else [files[row] for row in rows.tolist()]
