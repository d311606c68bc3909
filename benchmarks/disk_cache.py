"""Epochs over photographs of 500 x 375 at side 224: JPEG files decoded, against the cache of decoded images."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.data import MEAN, STD, WORKERS, drain, write_photos
from benchmarks.results import Section, ratios
from benchmarks.settings import Settings
from benchmarks.timing import Case, fixed, interleave
from metamixer.data import Augment, ImageSet, TrainLoader, load
from metamixer.data.image_set import evenly_spaced
from metamixer.data.random_crop import RandomCrop
from metamixer.data.splits import Split

AUGMENT = {"shift and flip": Augment(28), "random crop": Augment(0, crop=RandomCrop())}


def measure(settings: Settings) -> list[Section]:
    """One section: epochs from files and from the cache, by one process and by two workers."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        for name in ("a", "b"):
            (photos / name).mkdir(parents=True)
            write_photos(photos / name, 16 if settings.quick else 512, (500, 375))
        return [epochs(photos, Path(folder) / "cache", settings)]


def epochs(photos: Path, cache: Path, settings: Settings) -> Section:
    """Training images of a folder of photographs: a round decodes 256 of them, and reads all of them from the cache."""
    cases, notes = [], []
    for title, augment in AUGMENT.items():
        began = time.perf_counter()
        stored = _images(photos, augment, cache)
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in cache.rglob("*.shard")) / 1e6
        notes.append(f"{title}: {len(stored)} images stored in {seconds:.1f} s, {size:.0f} MB are in the cache then.")
        few = _images(photos, augment, "off").subset(evenly_spaced(len(stored), 256))
        for workers in WORKERS:
            for way, images in (("decoding", few), ("cache", stored)):
                batch = min(32, len(images) // 2)
                loader = TrainLoader(images, augment, MEAN, STD, batch, seed=0, workers=workers)
                count = len(loader) * batch
                name = f"{way}, {title}, {workers} workers"
                cases.append(Case(name, fixed(partial(drain, loader)), units=count, items=1))
    measured, missing = interleave(cases, settings.rounds, torch.device("cpu"))
    del cases, loader  # worker processes end with their loaders, before the files do
    pairs = [
        (f"decoding, {title}, {workers} workers", f"cache, {title}, {workers} workers", 1.0, bar)
        for title in AUGMENT
        for workers, bar in zip(WORKERS, ("cache", "cache-workers"), strict=True)
    ]
    notes.append("Times are those of one image, all of an epoch, whose first one, with the checksums, is not timed.")
    return Section("photographs of 500x375 at side 224", measured, ratios(measured, pairs), missing, tuple(notes))


def _images(photos: Path, augment: Augment, cache: Path | str) -> ImageSet:
    """The training images, as files."""
    crops = augment.crop is not None
    one: tuple[Split, ...] = ("train",)
    return load(
        photos,
        image_size=224,
        val_share=0,
        cache_limit_bytes=0,
        crops=crops,
        scale=(MEAN, STD),
        splits=one,
        cache=cache,
    ).train
