"""How a joint step grows with peers, batch and width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.results import Figure, Measured, Section
from benchmarks.settings import Settings, spelled
from benchmarks.timing import Case, fixed, interleave
from benchmarks.work import batch_of, joint_step, repeated
from metamixer.cohort.cohort import Cohort
from metamixer.losses import DML
from metamixer.mixers import NoMix

_WIDTHS = ("resnet8", "resnet20", "resnet32", "wrn_16_1", "wrn_16_2")


def measure(settings: Settings) -> list[Section]:
    """Three sections for each precision; the batch and the peers on the first network."""
    first = settings.networks[0]
    peers = (1, 2, 4) if settings.quick else (1, 2, 4, 8)
    batches = (8, 16) if settings.quick else (32, 64, 128, 256)
    widths = _WIDTHS[:2] if settings.quick else _WIDTHS
    sections = []
    for precision in settings.precisions:
        title = spelled(precision)
        sections += [
            _section(f"peers: {first}, {title}", settings, precision, [(first, count, None) for count in peers]),
            _section(f"batch: {first}, 2 peers, {title}", settings, precision, [(first, 2, size) for size in batches]),
            _section(f"network: 2 peers, {title}", settings, precision, [(name, 2, None) for name in widths]),
        ]
    return sections


def _section(title: str, settings: Settings, precision: str, rows: Sequence[tuple[str, int, int | None]]) -> Section:
    """Rows of (network, peers, batch or None for the usual one)."""
    cases, counts = [], {}
    for name, peers, size in rows:
        shape = settings.shape(name) if size is None else replace(settings.shape(name), batch=size)
        batch = batch_of(settings, shape, companions=False)
        cohort = Cohort([settings.network(name) for _ in range(peers)])
        step = joint_step(cohort, NoMix(), DML(), batch, settings, precision)
        label = f"{name}, {peers} peer{'s' if peers > 1 else ''}, batch {shape.batch}"
        counts[label] = peers
        cases.append(Case(label, fixed(repeated(step, 1)), items=shape.batch))
    measured, missing = interleave(cases, settings.rounds, settings.where)
    return Section(title, measured, tuple(_per_peer(each, counts[each.name]) for each in measured), missing)


def _per_peer(measured: Measured, peers: int) -> Figure:
    samples = tuple(sample / peers for sample in measured.samples)
    return Figure(f"{measured.name}: per peer", samples, min(samples), "s")
