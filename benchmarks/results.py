"""What a suite hands over: what was measured in each round, and the ratios computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Measured:
    """One case, measured once in every round.

    Args:
        name: of the case.
        samples: one number for each round.
        unit: of the samples; ``s`` are seconds for one unit of work.
        items: images (or peers, ...) in one unit of work; 0: they mean nothing here.
        higher: more is better.
        note: what a reader has to know to judge the number.
    """

    name: str
    samples: tuple[float, ...]
    unit: str = "s"
    items: float = 0
    higher: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        """Over the rounds."""
        return median(self.samples)

    @property
    def best(self) -> float:
        """The least disturbed round: the minimum, or the maximum where more is better."""
        return max(self.samples) if self.higher else min(self.samples)

    @property
    def rate(self) -> float | None:
        """Items a second, from the median."""
        return self.items / self.median if self.items and self.unit == "s" else None


@dataclass(frozen=True)
class Figure:
    """A number that follows from two cases, or from one: what is compared with a bar.

    Args:
        name: what it is.
        samples: one number for each round; from the same round both cases of a ratio.
        best: the same from the best rounds of each case.
        unit: ``x`` for a ratio, ``s`` for a difference.
        bar: the key of the bar that it has to pass, or nothing.
    """

    name: str
    samples: tuple[float, ...]
    best: float
    unit: str = "x"
    bar: str = ""

    @property
    def median(self) -> float:
        """Over the rounds: of ratios taken inside a round, not the ratio of two medians."""
        return median(self.samples)


@dataclass(frozen=True)
class Missing:
    """A case that could not be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Section:
    """Cases that were measured in the same rounds, and so may be compared."""

    title: str
    measured: tuple[Measured, ...] = ()
    figures: tuple[Figure, ...] = ()
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """All sections of a suite, and how long it took in seconds."""

    name: str
    sections: tuple[Section, ...]
    seconds: float


def ratio(name: str, top: Measured, bottom: Measured, *, bar: str = "", times: float = 1) -> Figure:
    """``top / (times * bottom)``, paired by round.

    >>> slow, fast = Measured("slow", (2.0, 6.0)), Measured("fast", (1.0, 2.0))
    >>> ratio("slow / fast", slow, fast)
    Figure(name='slow / fast', samples=(2.0, 3.0), best=2.0, unit='x', bar='')
    """
    pairs = zip(top.samples, bottom.samples, strict=True)
    return Figure(name, tuple(a / (times * b) for a, b in pairs), top.best / (times * bottom.best), "x", bar)


def difference(name: str, more: Measured, less: Measured, *, bar: str = "") -> Figure:
    """``more - less``, paired by round, in their unit."""
    pairs = zip(more.samples, less.samples, strict=True)
    return Figure(name, tuple(a - b for a, b in pairs), more.best - less.best, more.unit, bar)


def plainly(measured: Measured, *, bar: str = "") -> Figure:
    """The case itself as a figure."""
    return Figure(measured.name, measured.samples, measured.best, measured.unit, bar)


def ratios(measured: tuple[Measured, ...], pairs: list[tuple[str, str, float, str]]) -> tuple[Figure, ...]:
    """The ratios of those pairs ``(top, bottom, times, bar)`` of names of which both were measured."""
    found = {each.name: each for each in measured}
    return tuple(
        ratio(
            f"{top} / {'' if times == 1 else f'{times:g} x '}{bottom}", found[top], found[bottom], bar=bar, times=times
        )
        for top, bottom, times, bar in pairs
        if top in found and bottom in found
    )
