"""Load a set of labelled images by its name or folder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from metamixer.core.standard_sets import STANDARD
from metamixer.data.errors import DataError
from metamixer.data.files.folder_scan import FolderLayout
from metamixer.data.files.image_file import Fit
from metamixer.data.files.label_file import LabelFiles
from metamixer.data.files.load_files import Reading
from metamixer.data.image_set import Numbers, pair
from metamixer.data.sources.hub_stream import stream_hf
from metamixer.data.sources.huggingface import Columns, is_table_folder, load_hf
from metamixer.data.sources.image_folder import load_folder
from metamixer.data.sources.scenes import PREFIX, make_scenes
from metamixer.data.sources.standard import load_standard
from metamixer.data.sources.webdataset import PREFIX as SHARDS
from metamixer.data.sources.webdataset import load_wds
from metamixer.data.splits import SPLITS, Data, HoldOut, Split

DATASETS = {name: standard.summary for name, standard in STANDARD.items()}
"""The sets that go by a name, and what each is."""


class ReadingOptions(TypedDict, total=False):
    """How images are read: see :func:`load`."""

    image_size: int | Sequence[int] | None
    channels: int | None
    on_error: Literal["stop", "skip"]
    cache_limit_bytes: int
    fit: Fit
    white: int
    bits: int
    splits: Collection[Split]
    scale: tuple[Numbers, Numbers] | None
    crops: bool
    skipped: Collection[str]
    cache: str | Path
    cache_size: int | None
    cache_writes: bool
    buffer: int
    stream: bool


def load(
    name: str | Path,
    *,
    root: str | Path = "data",
    download: bool = False,
    val_share: float = 0.1,
    seed: int = 0,
    train_limit: int | None = None,
    layout: FolderLayout = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    labels: str | Sequence[str] | None = None,
    labels_column: str = "label",
    **reading: Unpack[ReadingOptions],
) -> Data:
    """The training, validation and test split of a set of labelled images.

    If the set has no validation split, one is held out of the training split; the test split is never changed. A folder
    holds ``train/CLASS/…`` and optionally ``val/CLASS/…`` and ``test/CLASS/…``; or ``CLASS/…``, of which a tenth
    becomes the test split, the same one for every seed.

    Args:
        name: one of ``DATASETS``; the path of a folder of images or of parquet or arrow files; ``hf:NAME``, a
            Hugging Face data set on the hub or a folder that ``save_to_disk`` wrote; or ``wds:PATTERN``, WebDataset tar
            shards, here or at a URL, by braces and wildcards: ``wds:s3://bucket/train-{0000..0099}.tar``. A name of
            ``DATASETS`` comes before a folder of that name: ``./mnist`` is the folder. ``scenes:`` before any of these
            but ``wds:`` puts its images into scenes whose boxes are known: see ``docs/localization.md``; ``image_size``
            is then the side of a scene, twice that of the images by default.
        root: folder of the standard sets. ``fashion-mnist`` is also read from its four ``.gz`` files in ``root``
            or ``root/fashion-mnist``.
        download: download a standard set to ``root``, or a Hugging Face set to the cache of that library.
        val_share: share of each class to hold out for validation if there is no validation split; 0: none.
        seed: seed of the validation split and of ``train_limit``.
        train_limit: largest number of training images of each class, after validation images were held out.
        layout: layout of a folder of images: ``auto`` recognizes splits by name; ``classes`` treats each folder as a
            class.
        image_column: column of the images in a Hugging Face set, or the file ending of images in tar shards; None: the
            only one that fits.
        label_column: column of the labels in a Hugging Face set, as names or numbers, or a field of ``.json`` in tar
            shards; None: the only column that fits, the text of ``.cls`` in tar shards.
        labels: for a folder of images, a CSV file with the columns ``file`` and ``label`` and, optionally, ``split``;
            or several files, each named after its split. All paths are relative to the folder.
        labels_column: the column of ``labels`` with the classes.
        reading: ``image_size``, a side or (height, width): the largest centred part of these proportions is resized.
            None: as the images are if they have one size with sides up to 96 pixels, else 224 x 224.
            ``channels``, 1 (grey), 3 (colour) or more. None: those of the images.
            ``on_error``, ``"stop"`` at files that cannot be read, or ``"skip"`` them and list them in
            ``Data.skipped``.
            ``cache_limit_bytes`` (2 GiB): larger sets stay on disk and are decoded again in every epoch; with
            ``"stop"``, an image that is damaged beyond its header then stops the training when it is reached
            (:func:`check` finds it before).
            ``fit``, how an image is brought to other proportions: ``"crop"`` keeps the largest centred part,
            ``"letterbox"`` keeps all of it and adds grey bars, ``"squash"`` keeps all of it and distorts it.
            ``white`` (65535), the value of white in 16-bit files, such as 4095 for 12-bit cameras. ``bits``, 8 or 16;
            16 keeps the precision of 16-bit files.
            ``splits``, the splits to hold in memory, all by default; images of the others are decoded on access.
            ``scale``, mean and standard deviation of the training images; None: they are computed. ``crops``, to leave
            training images on disk because random crops need all their pixels. ``skipped``, names as in
            ``Data.skipped`` of files to leave out without reading them.
            ``cache``, a folder, ``"auto"`` or ``"off"``, to store decoded images that do not stay in memory, those for
            crops with a shorter side of ``cache_size``; see ``docs/data.md``. ``cache_writes=False`` reads the cache
            only. ``buffer``, the number of images of shards that are shuffled together (4096).
            ``stream``, to read the parquet files or tar shards of a Hugging Face set in place, on the hub or in a
            folder, in the order of ``wds:`` sets.

    Raises:
        DataError: a setting or the set is not accepted; the message says what is.

    >>> data = load("fashion-mini")
    >>> len(data.train), len(data.val), len(data.test), data.channels, data.size
    (5400, 600, 1000, 1, (28, 28))
    """
    size, stream = reading.get("image_size"), reading.pop("stream", False)
    how = Reading(**{**reading, "image_size": None if size is None else pair(size)})  # type: ignore[arg-type]
    hold: HoldOut = {"val_share": val_share, "seed": seed, "train_limit": train_limit}

    files = (
        None if labels is None else LabelFiles((labels,) if isinstance(labels, str) else tuple(labels), labels_column)
    )

    def source(name: str, how: Reading) -> Data:
        folder, columns = Path(name).expanduser(), Columns(image_column, label_column)
        table = name.startswith("hf:") or (name not in STANDARD and is_table_folder(folder))
        if files and (name in STANDARD or name.startswith(SHARDS) or table):
            raise DataError(f"data.labels with {name!r}; a folder of images is expected")
        if stream and not (table or name.startswith(SHARDS)):
            raise DataError(f"data.stream=true with {name!r}; hf:NAME or a folder of parquet files is accepted")
        if name in STANDARD:
            if how.bits != 8 or how.channels not in (None, 1, 3):
                raise DataError(
                    f"{name} has images of 8 bits with 1 or 3 channels; bits and channels of files are others"
                )
            return load_standard(name, Path(root).expanduser(), download, how, **hold)
        if table:
            place = name.removeprefix("hf:") if name.startswith("hf:") else str(folder)
            return stream_hf(place, how, columns, **hold) if stream else load_hf(place, download, how, columns, **hold)
        if name.startswith(SHARDS):
            return load_wds(name.removeprefix(SHARDS), how, columns, **hold)
        if not Path(name).exists() and not _looks_like_a_path(name):
            raise _unknown(name)
        return load_folder(folder, how, layout, files, **hold)

    name = str(name)
    if not name.startswith(PREFIX):
        return source(name, how)
    inner = name.removeprefix(PREFIX)
    if not inner or inner.startswith(PREFIX):
        raise DataError(f"{name!r} names no data set; {PREFIX} before one, as 'scenes:fashion-mini', works")
    if inner.startswith(SHARDS) or stream:
        raise DataError(f"{name!r}: scenes are made of images in memory; a folder or a set by name is accepted")
    if how.bits != 8 or how.channels not in (None, 1, 3):
        raise DataError(f"{name!r}: scenes are of 8 bits with 1 or 3 channels")
    # Standard sets have a size of their own; other images are brought to half of the scene's.
    how = replace(how, splits=SPLITS, scale=None, crops=False, cache="off")  # scenes are drawn from all images
    half = None if how.image_size is None or inner in STANDARD else pair([max(1, s // 2) for s in how.image_size])
    return make_scenes(source(inner, replace(how, image_size=half)), how.image_size, how.cache_limit_bytes)


def _unknown(name: str) -> DataError:
    close = get_close_matches(name.lower(), STANDARD, n=2, cutoff=0.5)
    meant = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return DataError(
        f"{name!r} is not a data set{meant}; expected {', '.join(STANDARD)}, a folder, 'hf:NAME' or 'wds:PATTERN'"
    )


def _looks_like_a_path(name: str) -> bool:
    return any(sign in name for sign in "/\\~.")
