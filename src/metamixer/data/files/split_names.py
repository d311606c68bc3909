"""Folder names that are recognised as splits."""

from __future__ import annotations

import re

ALIASES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "tst"),
}
"""Common names of each split, in upper or lower case, also as ``train_set``, ``Test-Images``, ``training data``."""
_SUFFIX = r"(?:[ _-]?(?:set|split|data|images|imgs))?"
_EXACT = {split: re.compile(f"(?:{'|'.join(names)}){_SUFFIX}", re.IGNORECASE) for split, names in ALIASES.items()}
_ALIKE = {split: re.compile(f"(?:{'|'.join(names)})(?![a-z])", re.IGNORECASE) for split, names in ALIASES.items()}


def split_named(folder: str) -> str | None:
    """``train``, ``val`` or ``test`` if the folder name is an alias of it, else None.

    >>> split_named("Training"), split_named("test_set"), split_named("trainer")
    ('train', 'test', None)
    """
    return next((split for split, pattern in _EXACT.items() if pattern.fullmatch(folder)), None)


def split_alike(folder: str) -> str | None:
    """The split that a name resembles, such as ``train2017`` or ``test-A``; used for warnings, not to find splits.

    >>> split_alike("train2017"), split_alike("valley")
    ('train', None)
    """
    return split_named(folder) or next((split for split, pattern in _ALIKE.items() if pattern.match(folder)), None)
