"""Load a set of labelled images by its name or folder."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from metamixer.core.standard_sets import STANDARD
from metamixer.data.errors import DataError
from metamixer.data.files.load_files import Reading
from metamixer.data.image_set import pair
from metamixer.data.sources.huggingface import load_hf
from metamixer.data.sources.image_folder import load_folder
from metamixer.data.sources.scenes import PREFIX, make_scenes
from metamixer.data.sources.standard import load_standard
from metamixer.data.splits import Data

DATASETS = {name: standard.summary for name, standard in STANDARD.items()}
"""The sets that go by a name, and what each is."""


def load(
    name: str | Path,
    *,
    root: str | Path = "data",
    download: bool = False,
    val_share: float = 0.1,
    seed: int = 0,
    image_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    on_error: Literal["stop", "skip"] = "stop",
    cache_limit_bytes: int = 2 * 1024**3,
    train_limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Data:
    """The training, validation and test split of a set of labelled images.

    The validation split is the set's own or is held out of the training split; the test split is left alone. A folder
    holds ``train/CLASS/…`` and, if there are, ``val/CLASS/…`` and ``test/CLASS/…``; or ``CLASS/…``, of which a tenth
    becomes the test split, the same for every seed.

    Args:
        name: one of ``DATASETS``; the path of a folder of images; or ``hf:NAME``, a Hugging Face data set on the hub or
            a folder that ``save_to_disk`` wrote. A name of ``DATASETS`` comes before a folder of that name: ``./mnist``
            is the folder. ``scenes:`` before any of these puts its images into scenes whose boxes are known: see
            ``docs/localization.md``; ``image_size`` is then the side of a scene, twice that of the images by default.
        root: where the standard sets are kept. ``fashion-mnist`` is also read from its four ``.gz`` files in ``root``
            or ``root/fashion-mnist``.
        download: fetch a standard set into ``root``, or a Hugging Face set into that library's cache.
        val_share: of every class, where there is no validation split; 0: none.
        seed: of the validation split and of ``train_limit``.
        image_size: a side or (height, width): the largest centred part of these proportions is resized. None: as the
            images are if they have one size with sides up to 96 pixels, else 224 x 224.
        channels: 1 (grey) or 3 (colour). None: grey if all images are.
        on_error: ``stop`` at files that cannot be read, or ``skip`` them and list them in ``Data.skipped``.
        cache_limit_bytes: images that take more than this are decoded again in every epoch, and with ``"stop"`` one
            that is damaged beyond its header stops the training when its turn comes; :func:`check` finds it before.
        train_limit: so many training images of every class at most, after validation images were held out.
        image_column: of a Hugging Face set with several of them.
        label_column: of a Hugging Face set with several of them.

    Raises:
        DataError: says what came and what would work.

    >>> data = load("fashion-mini")
    >>> len(data.train), len(data.val), len(data.test), data.channels, data.size
    (5400, 600, 1000, 1, (28, 28))
    """
    how = Reading(None if image_size is None else pair(image_size), channels, on_error, cache_limit_bytes)
    name = str(name)
    if name.startswith(PREFIX):
        inner = name.removeprefix(PREFIX)
        if not inner or inner.startswith(PREFIX):
            raise DataError(f"{name!r} names no data set; {PREFIX} before one, as 'scenes:fashion-mini', works")
        # Standard sets have a size of their own; other images are brought to half of the scene's.
        own = image_size is None or inner in STANDARD
        source = load(
            inner,
            root=root,
            download=download,
            val_share=val_share,
            seed=seed,
            image_size=None if own else [max(1, side // 2) for side in pair(image_size or 0)],
            channels=channels,
            on_error=on_error,
            cache_limit_bytes=cache_limit_bytes,
            train_limit=train_limit,
            image_column=image_column,
            label_column=label_column,
        )
        return make_scenes(source, image_size, cache_limit_bytes)
    if name in STANDARD:
        return load_standard(
            name, Path(root).expanduser(), download, how, val_share=val_share, seed=seed, train_limit=train_limit
        )
    if name.startswith("hf:"):
        return load_hf(
            name.removeprefix("hf:"),
            download,
            how,
            val_share=val_share,
            seed=seed,
            train_limit=train_limit,
            image_column=image_column,
            label_column=label_column,
        )
    if not Path(name).exists() and not _looks_like_a_path(name):
        close = get_close_matches(name.lower(), STANDARD, n=2, cutoff=0.5)
        meant = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        raise DataError(f"{name!r} is not a data set{meant}; {', '.join(STANDARD)}, a folder or 'hf:NAME' would work")
    return load_folder(Path(name).expanduser(), how, val_share=val_share, seed=seed, train_limit=train_limit)


def _looks_like_a_path(name: str) -> bool:
    return any(sign in name for sign in "/\\~.")
