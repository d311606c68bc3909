"""Cases timed in turn, round after round, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.results import Measured, Missing

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Something to time.

    Args:
        name: of the case.
        make: hands over the work; it is called before each timing and is not timed.
        units: how many units of work one call does; the samples are per unit.
        items: images in one unit.
        note: for the reader.
    """

    name: str
    make: Callable[[], Work]
    units: int = 1
    items: float = 0
    note: str = ""


def fixed(work: Work) -> Callable[[], Work]:
    """Work that needs no preparation: what ``Case.make`` is then."""
    return lambda: work


def wait_for(device: torch.device) -> None:
    """Until an accelerator has done what it was handed; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    cases: Sequence[Case], rounds: int, device: torch.device, *, warmup: bool = True, seed: int = 0
) -> tuple[tuple[Measured, ...], tuple[Missing, ...]]:
    """Time every case once a round, in an order that is shuffled for each round.

    The plain way, all of one case and then all of the next, gives a case that ran while another program was busy a
    bad number, and nothing shows it. Ratios inside of a round cancel most of that.

    Args:
        cases: what to time. One that raises is left out from then on, with its message as the reason.
        rounds: samples of each case.
        device: is waited for before and after each timing.
        warmup: run every case once before the first round.
        seed: of the order.
    """
    gc.collect()
    gc.freeze()  # the collections before each timing then look at what is new, not at all of torch
    try:
        return _rounds(cases, range(0 if warmup else 1, rounds + 1), device, random.Random(seed))  # noqa: S311
    finally:
        gc.unfreeze()


def _rounds(
    cases: Sequence[Case], numbers: range, device: torch.device, shuffle: random.Random
) -> tuple[tuple[Measured, ...], tuple[Missing, ...]]:
    """Round 0 warms up."""
    samples: dict[str, list[float]] = {case.name: [] for case in cases}
    missing: dict[str, Missing] = {}
    for number in numbers:
        order = list(cases)
        shuffle.shuffle(order)
        for case in order:
            if case.name in missing:
                continue
            try:
                seconds = _time(case, device)
            except Exception as error:  # the others can still be measured
                missing[case.name] = Missing(case.name, f"{type(error).__name__}: {_first_line(error)}")
                continue
            if number:
                samples[case.name].append(seconds / case.units)
    measured = tuple(
        Measured(case.name, tuple(samples[case.name]), items=case.items, note=case.note)
        for case in cases
        if case.name not in missing
    )
    return measured, tuple(missing.values())


def _time(case: Case, device: torch.device) -> float:
    work = case.make()
    gc.collect()  # or a case pays for what another one left behind
    wait_for(device)
    began = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - began


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0][:300]
