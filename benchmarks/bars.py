"""What the project promises itself, and whether a figure keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Figure, Suite


@dataclass(frozen=True)
class Bar:
    """A limit that has to be kept, and a better one to aim at.

    Args:
        key: what a figure names.
        what: is judged.
        must, aim: the limits; no aim: None.
        higher: values have to lie above and not below.
        unit: of the limits.
    """

    key: str
    what: str
    must: float
    aim: float | None = None
    higher: bool = False
    unit: str = "x"

    def verdict(self, value: float) -> str:
        """``aim``, ``pass`` or ``FAIL``.

        >>> Bar("two", "", 1.10, 1.02).verdict(1.05), Bar("speed", "", 4, 5, higher=True).verdict(3.9)
        ('pass', 'FAIL')
        """
        if self.aim is not None and self._keeps(value, self.aim):
            return "aim"
        return "pass" if self._keeps(value, self.must) else "FAIL"

    def _keeps(self, value: float, limit: float) -> bool:
        return value >= limit if self.higher else value <= limit


BARS = (
    Bar("two", "2-peer DML / 2 plain steps", 1.10, 1.02),
    Bar("four", "4-peer DML / 4 plain steps", 1.08, 1.00),
    Bar("metamixer", "MetaMixer / DML", 1.05, 1.02),
    Bar("threads", "threads / joint step, bf16", 0.92, 0.85),
    Bar("trainer", "Trainer / bare loop", 1.03, 1.01),
    Bar("pydml-32", "epoch: pytorch-dml / ours fp32", 1.3, 1.6, higher=True),
    Bar("pydml-bf16", "epoch: pytorch-dml / ours bf16", 1.7, 2.3, higher=True),
    Bar("kdlib-32", "epoch: KD-Lib / ours fp32", 4, 5, higher=True),
    Bar("kdlib-bf16", "epoch: KD-Lib / ours bf16", 6, 7, higher=True),
    Bar("augment", "per-image / batched augmentation", 20, 60, higher=True),
    Bar("cache", "epoch of photos: decoded / from the cache", 8, higher=True),
    Bar("cache-workers", "the same with two workers", 3, higher=True),
    Bar("memory", "peak memory: 2 peers / 1 plain", 2.1, 2.0),
    Bar("help", "metamixer --help", 0.5, unit="s"),
    Bar("list", "metamixer list", 1.0, unit="s"),
    Bar("predict", "predict of one image / import torch", 1.5),
    Bar("first-step", "first training step / import torch", 2.5),
    Bar("short-run", "short run of a study: forked / a process each", 0.4, 0.25),
    Bar("import", "import adds to torch", 0.3, unit="s"),
)


@dataclass(frozen=True)
class Judged:
    """A figure beside its bar; ``figure`` is None where nothing was measured."""

    bar: Bar
    where: str
    figure: Figure | None

    @property
    def verdict(self) -> str:
        """By the median of the rounds."""
        return self.bar.verdict(self.figure.median) if self.figure else "not measured"


def judge(suites: Iterable[Suite]) -> list[Judged]:
    """Every bar with every figure that was measured for it."""
    found = [(section.title, figure) for suite in suites for section in suite.sections for figure in section.figures]
    judged = []
    for bar in BARS:
        rows = [Judged(bar, title, figure) for title, figure in found if figure.bar == bar.key]
        judged += rows or [Judged(bar, "", None)]
    return judged
