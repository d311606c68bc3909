"""One epoch of mutual learning by others and by us, with the same two networks on the same images."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.competitors import COMPETITORS, DECAY, LR, MOMENTUM, Competitor, Task
from benchmarks.data import MEAN, STD
from benchmarks.results import Missing, Section, ratios
from benchmarks.settings import Settings
from benchmarks.timing import Case, Work, interleave
from metamixer.cohort.cohort import Cohort
from metamixer.core.torchvision_compat import make_importable
from metamixer.core.types import Batch
from metamixer.data import Augment, TensorImages, TrainLoader
from metamixer.data.augment import normalise
from metamixer.losses import DML
from metamixer.mixers import NoMix
from metamixer.training.optimizer import Optim
from metamixer.training.trainer import Batches, Precision, Trainer

OURS = {"32": "ours fp32", "bf16": "ours bf16"}
AUGMENTED = "ours fp32, own loader with augmentation"
_BARS = {"pytorch-dml": "pydml", "KD-Lib": "kdlib"}


@dataclass(frozen=True)
class Loaded:
    """The others' DataLoader as the trainer wants its batches."""

    loader: DataLoader[tuple[Tensor, ...]]
    device: torch.device

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """A new order whatever the number: none of the others can do better."""
        for images, labels in self.loader:
            yield Batch(images.to(self.device), labels.to(self.device))


def measure(settings: Settings) -> list[Section]:
    """One section on the first network; those of ``competitors.COMPETITORS`` and ours in the same rounds."""
    make_importable()  # or what imports torchvision does not import beside a torch without CUDA
    name, steps = settings.networks[0], 3 if settings.quick else 20
    shape = settings.shape(name)
    pixels = _pixels(shape.batch * steps, shape.side)
    labels = torch.arange(len(pixels)) % settings.classes
    # The others get plain contiguous memory, which is what their users have.
    dataset = TensorDataset(normalise(pixels, MEAN, STD).contiguous(), labels)
    loader = DataLoader(dataset, shape.batch, shuffle=True, drop_last=True)
    pair = [settings.network(name).to(memory_format=torch.contiguous_format) for _ in range(2)]  # type: ignore[call-overload]
    cases, missing = [], []
    for competitor in COMPETITORS:
        if competitor.installed:
            make = partial(_theirs, competitor, pair, loader, settings.where)
            cases.append(Case(competitor.name, make, items=len(dataset), note=competitor.note))
        else:
            missing.append(Missing(competitor.name, f"not installed: {competitor.install}"))
    held = TensorImages(pixels, labels, tuple(str(number) for number in range(settings.classes)))
    own = TrainLoader(
        held.to(settings.where), Augment(4), MEAN, STD, shape.batch, seed=0, companions=True, device=settings.where
    )
    way, options = settings.fastest
    ours, beside = partial(_ours, pair, settings), f"ours bf16, {way}"
    train = Loaded(loader, settings.where)
    for precision in settings.precisions:
        cases.append(_case(OURS[precision], partial(ours, train, precision), len(dataset), "Trainer.fit"))
    if "bf16" in settings.precisions:
        cases.append(_case(beside, partial(ours, train, "bf16", options), len(dataset), f"peers with {way}"))
    if "32" in settings.precisions:
        note = "crop, flip, normalisation and companions, which no other row does"
        cases.append(_case(AUGMENTED, partial(ours, own, "32"), len(dataset), note))
    measured, failed = interleave(cases, settings.rounds, settings.where)
    rivals = [competitor.name for competitor in COMPETITORS]
    pairs = [
        (rival, mine, 1.0, _bar(rival, mine))
        for mine in (*OURS.values(), beside, AUGMENTED)
        for rival in rivals
    ]  # fmt: skip
    notes = (
        "Each trains copies of the same two networks for one epoch, from tensors in memory with the same DataLoader, "
        f"SGD with momentum. {len(dataset)} images of {shape.side}x{shape.side}, batches of {shape.batch}.",
        "Ours also clips gradients and checks every loss, as it does by default. What builds a trainer is not timed.",
    )
    return [Section(f"epoch: 2 x {name}", measured, ratios(measured, pairs), (*missing, *failed), notes)]


def _pixels(count: int, side: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=draw, dtype=torch.uint8)


def _case(name: str, make: Callable[[], Work], items: int, note: str) -> Case:
    return Case(name, make, items=items, note=note)


def _bar(rival: str, mine: str) -> str:
    if rival not in _BARS or mine == AUGMENTED:
        return ""
    return f"{_BARS[rival]}-{'32' if mine == OURS['32'] else 'bf16'}"


def _theirs(competitor: Competitor, pair: list[nn.Module], loader: DataLoader[Any], device: torch.device) -> Work:
    with _silence():
        work = competitor.prepare(Task(copy.deepcopy(pair), loader, device))
    return lambda: _silently(work)


def _ours(
    pair: list[nn.Module], settings: Settings, train: Batches, precision: Precision,
    options: dict[str, Any] | None = None,
) -> Work:  # fmt: skip
    trainer = Trainer(
        Cohort(copy.deepcopy(pair), **(options or {})),
        NoMix(),
        DML(),
        optim=Optim(lr=LR, momentum=MOMENTUM, weight_decay=DECAY, schedule="constant", warmup=0.0),
        epochs=1,
        precision=precision,
        accelerator=settings.device,
    )
    return lambda: trainer.fit(train)


def _silently(work: Work) -> None:
    with _silence():
        work()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """In an empty folder, without a word: some write files and progress where they stand."""
    here = os.getcwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)
