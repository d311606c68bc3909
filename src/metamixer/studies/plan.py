"""The state of a study: finished and missing runs, and the estimated time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metamixer.config.yaml_file import RecipeError
from metamixer.core.machine import cores
from metamixer.runs.environment import environment
from metamixer.studies.estimate import Left, left
from metamixer.studies.results import FILE, Line, append, join, read_lines
from metamixer.studies.run_folder import finished, line_of
from metamixer.studies.study_file import Cell, Study

Jobs = int | Literal["auto"]


@dataclass
class Plan:
    """The finished and the remaining runs of a study.

    Args:
        study: the study.
        folder: the folder of its runs and its ``results.jsonl``.
        lines: lines of finished runs, by checksum.
        news: those lines that are not in the file of the folder.
        others: all lines that were found, including other recipes, to estimate costs.
        jobs: number of parallel runs.
        threads: number of threads per run.
    """

    study: Study
    folder: Path
    lines: dict[str, Line]
    news: list[Line]
    others: list[Line]
    jobs: int
    threads: int

    @classmethod
    def of(
        cls, study: Study, folder: Path, *, jobs: Jobs = 1, threads: int | None = None, results: Sequence[Path] = ()
    ) -> Plan:
        """Read the current state without writing anything. For the arguments see :func:`conduct`.

        Raises:
            RecipeError: a number is not valid, a file of ``results`` cannot be read, or the number of threads would
                change.
        """
        if (jobs != "auto" and jobs < 1) or (threads is not None and threads < 1):
            raise RecipeError(f"jobs={jobs}, threads={threads}: accepted are numbers from 1, and jobs=auto")
        files = _files(study, folder, results)
        lines, news = _collect(study, folder, files)
        threads = _threads(folder, lines.values(), jobs, threads)
        places = max(1, cores() // threads) if jobs == "auto" else jobs
        return cls(study, folder, lines, news, [line for _, each in files for line in each], places, threads)

    @property
    def done(self) -> list[Cell]:
        """The finished runs, each once."""
        return [cell for cell in self.study.runs if self.line(cell) is not None]

    @property
    def waiting(self) -> list[Cell]:
        """The runs that are not finished."""
        return [cell for cell in self.study.runs if self.line(cell) is None]

    def line(self, cell: Cell) -> Line | None:
        """The line of a run that has ended and has all required measurements, else None."""
        line, measure = self.lines.get(cell.digest), self.study.content.measure
        wanted = {*measure.robustness, *(["max_box_acc_v2"] if measure.localization else [])}
        return line if line is not None and wanted <= line.metrics.keys() else None

    def run_folder(self, cell: Cell) -> Path:
        """The folder of a run in this study."""
        return self.folder / "runs" / cell.name

    def keep_news(self) -> None:
        """Append the new lines to the file of the folder."""
        append(self.folder / FILE, self.news)
        self.news = []

    def take_in(self, cell: Cell, took: float, memory: int | None) -> None:
        """Append the line of a run that has ended in this folder.

        Args:
            cell: the run.
            took: seconds of its process.
            memory: peak memory in bytes, if known.
        """
        place = self.run_folder(cell)
        line = line_of(cell, place, self.study.content.measure, took=took, memory=memory)
        append(self.folder / FILE, [line])
        self.lines |= join([(self.folder / FILE, self.lines.values()), (place, [line])], {cell.digest})

    def left(self, elapsed: Mapping[str, float], failed: Collection[str] = ()) -> Left:
        """Estimate the time of the missing runs.

        Args:
            elapsed: seconds so far of started runs, by checksum.
            failed: checksums of runs that failed and are not retried now.
        """
        here = environment()
        return left(
            [cell for cell in self.waiting if cell.digest not in failed],
            self.study.content.measure,
            [*self.lines.values(), *self.others],
            jobs=self.jobs,
            threads=self.threads,
            machine=here["gpu"] or here["processor"],
            elapsed=elapsed,
        )


Files = Sequence[tuple[Path, Sequence[Line]]]


def _files(study: Study, folder: Path, results: Sequence[Path]) -> Files:
    """The results file of the folder, the one beside the study file, and the given ones, each once."""
    places = [folder / FILE] if study.path is None else [folder / FILE, study.path.parent / FILE]
    once: dict[Path, Path] = {}
    for path in [*(path for path in places if path.exists()), *results]:
        once.setdefault(path.resolve(), path)
    return [(path, read_lines(path)) for path in once.values()]


def _collect(study: Study, folder: Path, files: Files) -> tuple[dict[str, Line], list[Line]]:
    """The lines of the runs of a study by checksum, and those that are missing or have fewer metrics in the file of the
    folder.

    Lines of finished runs that are missing, or have fewer metrics than needed, are created from the run folders.
    """
    digests, kept = {cell.digest for cell in study.cells}, folder / FILE
    lines = join(files, digests)
    runs = []
    for cell in study.runs:
        place, line = folder / "runs" / cell.name, lines.get(cell.digest)
        wanted = {*study.content.metrics, *study.content.measure.robustness}
        if (line is None or wanted - line.metrics.keys()) and finished(place, study.content.measure):
            runs.append(line_of(cell, place, study.content.measure))
    lines = join([(kept, lines.values()), (folder / "runs", runs)], digests)
    own = join([(kept, files[0][1] if kept.exists() else [])], digests)
    return lines, [
        line for key, line in lines.items() if key not in own or line.metrics.keys() - own[key].metrics.keys()
    ]


def _threads(folder: Path, lines: Collection[Line], jobs: Jobs, asked: int | None) -> int:
    known = folder / "threads"
    if known.is_file():
        before = int(known.read_text())
        if asked not in (None, before):
            raise RecipeError(
                f"{folder} was begun with {before} threads for each run, not {asked}, which gives other last bits; "
                f"accepted: --threads {before}, or another --out"
            )
        return before
    if asked is not None:
        return asked
    if usual := Counter(line.threads for line in lines if line.threads).most_common(1):
        return int(usual[0][0] or 1)
    return 1 if jobs == "auto" else max(1, cores() // jobs)
