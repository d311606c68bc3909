"""What the trainer costs: ``Trainer.fit`` with log files and progress against a bare loop that does the same work."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.results import Section, ratios
from benchmarks.settings import Settings, spelled
from benchmarks.timing import Case, Work, interleave
from benchmarks.work import OPTIM, batch_of
from metamixer.cli.training_progress import Progress
from metamixer.cohort.cohort import Cohort
from metamixer.core.seeding import generator
from metamixer.core.types import Batch, total
from metamixer.losses import DML
from metamixer.mixers import MetaMixer
from metamixer.training.run_logger import Files
from metamixer.training.train_step import train_step
from metamixer.training.trainer import Precision, Trainer

EPOCHS = 2


@dataclass(frozen=True)
class Held:
    """Batches that are in memory already, the same in every epoch."""

    batches: Sequence[Batch]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches from number ``start`` on."""
        return iter(self.batches[start:])


def measure(settings: Settings) -> list[Section]:
    """One section for each precision, on the first network."""
    return [trainer(settings, settings.networks[0], precision) for precision in settings.precisions]


def trainer(settings: Settings, name: str, precision: str) -> Section:
    """A few dozen steps of each, two peers, MetaMixer with DML."""
    shape, count = settings.shape(name), 3 if settings.quick else 12
    held = Held([batch_of(settings, shape, seed=seed) for seed in range(count)])
    cohorts = [Cohort([settings.network(name) for _ in range(2)]) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder:

        def fit() -> Work:
            made = Trainer(
                cohorts[0],
                MetaMixer(),
                DML(),
                optim=OPTIM,
                epochs=EPOCHS,
                precision=_precision(precision),
                accelerator=settings.device,
                callbacks=[Files(Path(folder)), Progress(Console(file=io.StringIO(), force_terminal=False))],
            )
            return lambda: made.fit(held)

        steps = EPOCHS * count
        cases = [
            Case("Trainer.fit", fit, steps, shape.batch),
            Case("bare loop", lambda: lambda: _bare(cohorts[1], held, settings, precision), steps, shape.batch),
        ]
        measured, missing = interleave(cases, settings.rounds, settings.where)
    return Section(
        f"trainer: {name}, {spelled(precision)}, {steps} steps",
        measured,
        ratios(measured, [("Trainer.fit", "bare loop", 1.0, "trainer")]),
        missing,
        (
            "Both: two peers, MetaMixer, DML, one fused SGD. The trainer adds what begins and ends a run (a dry run, "
            "the event file), the check of each loss, running means, log files and progress.",
        ),
    )


def _bare(cohort: Cohort, held: Held, settings: Settings, precision: str) -> None:
    loss, mixer = DML(), MetaMixer()
    optimizer = OPTIM.build(cohort, loss)
    step, steps = 0, EPOCHS * len(held)
    for epoch in range(EPOCHS):
        for batch in held.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = OPTIM.rate(step / steps)
            with settings.autocast(precision):
                found = train_step(cohort, mixer, loss, batch, generator(0, "mix", step), step / steps)
            optimizer.zero_grad(set_to_none=True)
            total(found.terms).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1


def _precision(name: str) -> Precision:
    return "bf16" if name == "bf16" else "32"
