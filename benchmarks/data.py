"""The data path: whole batches against one image after another, and JPEG files by every decoder that is here."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.results import Missing, Section, ratios
from benchmarks.settings import Settings
from benchmarks.timing import Case, fixed, interleave
from metamixer.core.torchvision_compat import make_importable
from metamixer.data import Augment, TensorImages, TrainLoader
from metamixer.data.files.folder_images import FolderImages
from metamixer.data.files.image_file import read_image
from metamixer.data.policies import POLICIES, Changes
from metamixer.data.random_crop import RandomCrop

MEAN, STD = (0.5, 0.49, 0.44), (0.27, 0.26, 0.28)
WORKERS = (0, 2)
Decode = Callable[[Path, int], Tensor]


def measure(settings: Settings) -> list[Section]:
    """Two sections: images in memory, and files."""
    return [augmentation(settings), decoding(settings)]


def augmentation(settings: Settings) -> Section:
    """Random crop with padding 4, flip, normalisation."""
    count, batch = (64, 32) if settings.quick else (2048, 128)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % settings.classes
    held = TensorImages(pixels, labels, tuple(str(number) for number in range(settings.classes)))
    rows = list(torch.randperm(count, generator=draw).split(batch))  # type: ignore[no-untyped-call]

    def batched(augment: Augment) -> None:
        for part in rows:
            augment(held.fetch(part), MEAN, STD, torch.Generator().manual_seed(0))

    each: dict[str, Changes] = {policy: Changes(policy) for policy in POLICIES[2:]}
    each |= {"colour jitter": Changes(jitter=(0.4, 0.4, 0.4, 0.0)), "erasing": Changes(erasing=0.25)}
    cases = [
        Case("batched: Augment", fixed(partial(batched, Augment(4))), items=count),
        Case("batched: random crop", fixed(partial(batched, Augment(0, crop=RandomCrop()))), items=count),
        *(
            Case(f"each image: {name}", fixed(partial(batched, Augment(4, changes=changes))), items=count)
            for name, changes in each.items()
        ),
        *(
            Case(f"TrainLoader{', with companions' if companions else ''}", fixed(partial(
                drain, TrainLoader(held, Augment(4), MEAN, STD, batch, seed=0, companions=companions)
            )), items=count)
            for companions in (False, True)
        ),
    ]  # fmt: skip
    array = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    for title, transform in _per_image().items():
        images = _PerImage(array, transform)
        cases.append(Case(title, fixed(partial(_stack, images, rows)), items=count))
        loader = DataLoader(images, batch, shuffle=True, num_workers=2, persistent_workers=True)
        cases.append(Case(f"{title}, 2 workers", fixed(partial(_exhaust, loader)), items=count))
    measured, missing = interleave(cases, settings.rounds, torch.device("cpu"))
    best = min((one for one in measured if one.name.startswith("per image")), key=lambda one: one.median, default=None)
    pairs = [] if best is None else [
        (best.name, "batched: Augment", 1.0, "augment"),
        (best.name, "TrainLoader", 1.0, ""),
        (best.name, "TrainLoader, with companions", 0.5, ""),
    ]  # fmt: skip
    notes = (
        f"{count} images of 32x32, batches of {batch}. Per image: from an array as torchvision's CIFAR holds it. The "
        "ratio is to the fastest of the per-image ways. A batch with companions holds twice the images, so it is "
        "counted twice.",
    )
    return Section("augmentation", measured, ratios(measured, pairs), missing, notes)


def drain(loader: TrainLoader) -> None:
    """Go through an epoch."""
    for _ in loader.epoch(0):
        pass


def _exhaust(loader: DataLoader[Any]) -> None:
    for _ in loader:
        pass


def _stack(images: _PerImage, rows: Sequence[Tensor]) -> None:
    for part in rows:
        torch.stack([images[index] for index in part.tolist()])


def _per_image() -> dict[str, Callable[[Image.Image], Tensor]]:
    make_importable()
    v1, v2 = (importlib.import_module(f"torchvision.transforms{version}") for version in ("", ".v2"))
    return {
        "per image: torchvision transforms": v1.Compose(
            [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
        ),
        "per image: torchvision v2": v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        ),
    }


@dataclass(frozen=True, eq=False)
class _PerImage(Dataset[Tensor]):
    array: NDArray[np.uint8]
    transform: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(Image.fromarray(self.array[index]))


def decoding(settings: Settings) -> Section:
    """JPEG files of 256 pixels a side to tensors of 128."""
    count, side = (16, 32) if settings.quick else (200, 128)
    decoders: dict[str, Decode] = {"Pillow with draft (metamixer)": pillow}
    missing = []
    others: dict[str, Decode] = {"torchvision.io.decode_jpeg": vision, "simplejpeg": simple}
    for title, decode in others.items():
        if reason := _not_here(decode):
            missing.append(Missing(title, f"not here: {reason}"))
        else:
            decoders[title] = decode
    with tempfile.TemporaryDirectory() as folder:
        files = write_photos(Path(folder), count)
        cases = []
        for workers in WORKERS:
            for title, decode in decoders.items():
                loader = DataLoader(
                    _Files(files, side, decode), 32, num_workers=workers, persistent_workers=workers > 0
                )
                cases.append(Case(f"{title}, {workers} workers", fixed(partial(_exhaust, loader)), items=count))
            images = FolderImages(files, torch.arange(count), torch.arange(count) % 2, ("a", "b"), 3, (side, side))
            augment = Augment(0, crop=RandomCrop())
            ours = TrainLoader(images, augment, MEAN, STD, min(32, count), seed=0, workers=workers)
            cases.append(Case(
                f"TrainLoader with random crops, {workers} workers", fixed(partial(drain, ours)),
                items=len(ours) * ours.batch_size,
            ))  # fmt: skip
        measured, failed = interleave(cases, settings.rounds, torch.device("cpu"))
        del cases, loader, ours  # worker processes end with their loaders, before the files do
    pairs = [
        (f"{title}, {workers} workers", f"Pillow with draft (metamixer), {workers} workers", 1.0, "")
        for workers in WORKERS
        for title in list(decoders)[1:]
    ]
    notes = (f"{count} files of 256x256, decoded and resized to {side}x{side}, in batches of 32.",)
    return Section("decoding", measured, ratios(measured, pairs), (*missing, *failed), notes)


def write_photos(folder: Path, count: int, size: tuple[int, int] = (256, 256)) -> list[Path]:
    """JPEG files of a width and height: smooth shapes with a little noise."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        files.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    return files


def pillow(path: Path, side: int) -> Tensor:
    """As the package does it: the JPEG is decoded at the smallest scale that suffices."""
    return torch.from_numpy(read_image(path, 3, (side, side)))


def vision(path: Path, side: int) -> Tensor:
    """With torchvision's own decoder, which knows no scale."""
    io = importlib.import_module("torchvision.io")
    return _resized(io.decode_jpeg(io.read_file(str(path))), side)


def simple(path: Path, side: int) -> Tensor:
    """With libjpeg-turbo, at the smallest scale that suffices."""
    decode = importlib.import_module("simplejpeg").decode_jpeg
    return _resized(torch.from_numpy(decode(path.read_bytes(), min_height=side, min_width=side)).permute(2, 0, 1), side)


def _resized(pixels: Tensor, side: int) -> Tensor:
    if pixels.shape[-1] == side:
        return pixels
    return F.interpolate(pixels[None], (side, side), mode="bilinear", antialias=True)[0]


def _not_here(decode: Decode) -> str:
    """Why a decoder cannot be used, or nothing."""
    make_importable()
    with tempfile.TemporaryDirectory() as folder:
        try:
            decode(write_photos(Path(folder), 1)[0], 32)
        except Exception as error:  # an import that fails, or a library that was built without it
            return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return ""


@dataclass(frozen=True, eq=False)
class _Files(Dataset[Tensor]):
    files: Sequence[Path]
    side: int
    decode: Decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        return self.decode(self.files[index], self.side)
