"""What a person sees in the terminal: progress, tables, and text that cannot play tricks on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from metamixer.core.text import clean, percent
from metamixer.metrics.chance import chance_note, may_be_chance

if TYPE_CHECKING:
    from metamixer.evaluation.evaluate import Report, Score
    from metamixer.runs.run import Result
    from metamixer.training.callbacks import EpochRecord, Start, StepRecord

_MOST_LINES = 10  # of a whole training where no bar can be drawn
_SHORTEST = 12  # characters of a peer's name under the bar
_MUCH = 0.1  # of the time spent waiting for data, and something should be done about it
_HELP = {  # by TrainLoader.reading
    "memory": "cropping and flipping images in memory takes it: a smaller data.image_size takes less",
    "disk": "data.workers=2, or more up to the number of cores, decodes images beside them; a smaller data.image_size, "
    "or images stored at about that size, take less",
    "workers": "more data.workers, up to the number of cores, a smaller data.image_size, or images stored at about "
    "that size would help",
}


def console(*, stderr: bool = False) -> Console:
    """A console on what is stdout or stderr at this moment. Files and pipes get lines as long as they are."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=200)
    return made


def say(text: str, *, style: str = "", stderr: bool = False, console_: Console | None = None) -> None:
    """Print text, each of its lines cleaned, none of it read as markup."""
    target = console_ or console(stderr=stderr)
    for line in text.split("\n"):
        target.print(Text(clean(line), style=style), soft_wrap=True)


class Progress:
    """Shows how training goes: a bar where the console is a terminal, elsewhere a few lines in all.

    The terms of a step are still on the device; they are read a few times a second, not at every step.

    Args:
        console: where to.
        title: stands before the epoch.
        every: seconds between two looks at the device.
        clock: gives seconds.
    """

    def __init__(
        self,
        console: Console,
        title: str = "",
        every: float = 0.25,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._console, self._title, self._every, self._clock = console, title, every, clock
        self._live: Live | None = None
        self._terms: dict[str, list[float]] = {}
        self._train: list[float] = []
        self._val: list[Score] = []
        self._val_epoch = self._done_epoch = 0
        self._validating = Spinner("line", "validating")
        self._epoch, self._rate, self._waiting = 0, 0.0, 0.0
        self._helped = False
        self._seen, self._waited, self._seconds = 0, 0.0, 0.0

    def on_start(self, start: Start) -> None:
        """Draw the empty bar."""
        self._start = start
        self._names = [clean(name) for name in start.peers]
        self._first = self._step = start.step
        self._total = start.epochs * start.steps_per_epoch
        self._epoch = min(start.epochs, start.step // start.steps_per_epoch + 1)
        self._began = self._looked = self._at = self._clock()
        if self._console.is_terminal:
            self._live = Live(get_renderable=self.view, console=self._console, refresh_per_second=4)
            self._live.start()
        elif start.step:
            self._say(f"resuming from step {start.step}/{self._total}")

    def on_step(self, record: StepRecord) -> None:
        """Count; now and then look at the terms."""
        self._epoch, self._step = record.epoch, record.step
        self._at = self._clock()
        self._seen += record.images
        self._waited += record.waited
        self._seconds += record.seconds
        now = self._clock()
        if self._live is None or now - self._looked < self._every:
            return
        self._terms = {name: values.tolist() for name, values in record.terms.items()}
        rate = self._seen / max(self._seconds, 1e-9)
        share = self._waited / max(self._seconds, 1e-9)
        old = 0.7 if self._rate else 0.0
        self._rate = old * self._rate + (1 - old) * rate
        self._waiting = old * self._waiting + (1 - old) * share
        self._seen, self._waited, self._seconds, self._looked = 0, 0.0, 0.0, now

    def on_epoch(self, record: EpochRecord) -> None:
        """Take over the accuracies; without a bar, print one of the few lines. Say once what helps against waiting."""
        self._epoch, self._step = record.epoch, record.step
        self._done_epoch, self._at = record.epoch, self._clock()
        self._train = record.train_accuracy
        if record.val is not None:
            self._val, self._val_epoch = list(record.val.rows), record.epoch
        if self._live is not None:
            self._terms = record.terms
            self._help(record)
            return
        self._rate, self._waiting = record.images_per_second, record.waiting
        if record.epoch % math.ceil(self._start.epochs / _MOST_LINES) == 0 or record.epoch == self._start.epochs:
            if self._val:
                when = "" if self._val_epoch == record.epoch else f"after epoch {self._val_epoch} "
                shares = ", ".join(f"{clean(s.name)} {percent(s.accuracy)}" for s in self._val)
                metrics = f"validation {when}{shares}"
            else:
                pairs = zip(self._names, self._train, strict=False)
                metrics = "training " + ", ".join(f"{name} {percent(share)}" for name, share in pairs)
            speed = f"{self._rate:,.0f} images/s"
            if self._waiting > _MUCH:
                speed += f" (waits for data {100 * self._waiting:.0f} % of the time)"
            self._say(f"epoch {record.epoch}/{self._start.epochs}  {metrics}  {speed}  {self._left()}")
        self._help(record)

    def on_end(self) -> None:
        """Leave the last state of the bar on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def view(self) -> RenderableType:
        """The bar, what the time goes to, and a line for each peer."""
        validating = self._step == self._epoch * self._start.steps_per_epoch and self._done_epoch < self._epoch
        bar = Table.grid(padding=(0, 2))
        for _ in range(4):
            bar.add_column(no_wrap=True)
        bar.add_row(
            Text(f"{clean(self._title)} epoch {self._epoch}/{self._start.epochs}".strip(), style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._step, width=28),
            Text(self._left()),
            *([self._validating] if validating else []),
        )
        peers = Table.grid(padding=(0, 2))
        rows = [self._row(index) for index in range(len(self._names))]
        taken = sum(max(cell_len(row[place].plain) for row in rows) + 2 for place in range(len(rows[0])))
        if self._console.width - taken < _SHORTEST:  # numbers that wrap are worse than terms that are left out
            rows = [row[len(self._terms) :] for row in rows]
            taken = sum(max(cell_len(row[place].plain) for row in rows) + 2 for place in range(len(rows[0])))
        for name, row in zip(self._names, rows, strict=True):
            title = Text(f"  {name}")
            title.truncate(max(_SHORTEST, min(40, self._console.width - taken)), overflow="ellipsis")
            peers.add_row(title, *row)
        if self._val and len(self._names) > 1:
            blank = [Text("")] * (len(rows[0]) - 1)
            peers.add_row(Text("  ensemble"), *blank, Text(f"val {percent(self._val[-1].accuracy)}", style="green"))
        return Group(bar, *([self._sides()] if self._rate else []), peers)

    def _row(self, index: int) -> list[Text]:
        """The numbers of a peer."""
        cells = [Text(f"{label} {values[index]:.3f}") for label, values in self._terms.items()]
        if self._train:
            cells.append(Text(f"train {percent(self._train[index])}"))
        if self._val:
            cells.append(Text(f"val {percent(self._val[index].accuracy)}", style="green"))
        return cells

    def _sides(self) -> Text:
        """The pace of the whole, the share of time that goes to each side, and what each would reach alone.

        Computation may reach less: an accelerator may be computing while this process waits.
        """
        full, empty = "▰▱" if self._console.encoding.startswith("utf") else "#-"
        data = round(10 * self._waiting)
        alone = ""
        if self._start.reading in ("memory", "disk") and self._waiting > 0.001:
            alone = f" {self._rate / self._waiting:,.0f}/s"
        line = Text(f"  {self._rate:,.0f} images/s  ", style="cyan", no_wrap=True, overflow="ellipsis")
        line.append(f"data{alone} ").append(full * data, style="yellow").append(empty * (10 - data))
        line.append(f" compute up to {self._rate / max(1 - self._waiting, 1e-9):,.0f}/s")
        return line.append(f"  waits {100 * self._waiting:.0f} %", style="yellow" if self._waiting > _MUCH else "")

    def _help(self, record: EpochRecord) -> None:
        help_ = _HELP.get(record.reading)
        if help_ is None or self._helped or record.waiting <= _MUCH:
            return
        self._helped = True
        self._say(f"hint: the steps wait for data {100 * record.waiting:.0f} % of the time; {help_}")

    def _left(self) -> str:
        done = self._step - self._first
        if not done or self._step >= self._total:
            return ""
        # Of the time at the last step, from which it counts down: a long step or a validation must not raise it.
        left = (self._at - self._began) / done * (self._total - self._step)
        seconds = round(max(0.0, left - (self._clock() - self._at)))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d} left"

    def _say(self, text: str) -> None:
        say(f"{self._title} {text}".strip(), console_=self._console)


class NumberTable(Table):
    """A table of numbers under a first column of names, on any terminal: names are shortened, numbers never.

    Where it is too wide, headers wrap, then names are cut short, then columns go below each other in several tables.
    """

    _NAME = 14  # characters of a name that stay, at least
    _HEADER = 12  # characters of a word in a header that stay, at least

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, in as many parts as it takes."""
        if self.__rich_measure__(console, options.update(width=10_000)).maximum <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        for part in self._parts(options.max_width):
            yield from part.__rich_console__(console, options)

    def _parts(self, width: int) -> Iterator[Table]:
        first, *others = self.columns
        widths = [_narrowest(column, self._HEADER) for column in others]
        name = max(
            [cell_len(str(cell)) for cell in first.cells] + [cell_len(word) for word in str(first.header).split()]
        )
        while others:
            count, used = 0, 4  # two empty characters on either side, and three between columns
            while count < len(others) and (not count or used + widths[count] + 3 + self._NAME <= width):
                used += widths[count] + 3
                count += 1
            yield self._part(others[:count], min(name, max(self._NAME, width - used)), widths[:count])
            others, widths = others[count:], widths[count:]

    def _part(self, columns: Sequence[Column], name: int, widths: Sequence[int]) -> Table:
        part = Table(box=self.box)
        part.add_column(self.columns[0].header, width=name)
        for column, width in zip(columns, widths, strict=True):
            header = Text(str(column.header), overflow="ellipsis")
            part.add_column(header, justify="right", width=width, no_wrap=False)
        cells = [list(column.cells) for column in (self.columns[0], *columns)]
        for number, row in enumerate(self.rows):
            title = Text(str(cells[0][number]), no_wrap=True, overflow="ellipsis")
            part.add_row(title, *(column[number] for column in cells[1:]), style=row.style, end_section=row.end_section)
        return part


def _narrowest(column: Column, most: int) -> int:
    """Characters that hold every cell of a column whole, and the words of its header up to so many characters."""
    words = [min(most, cell_len(word)) for word in str(column.header).split()]
    return max([1, *words, *(cell_len(str(cell)) for cell in column.cells)])


def table(columns: Iterable[str], *, numbers: bool = True) -> Table:
    """An empty table; all but the first column hold numbers, unless ``numbers`` is false."""
    made = NumberTable(box=box.SIMPLE_HEAD) if numbers else Table(box=box.SIMPLE_HEAD)
    for position, name in enumerate(columns):
        made.add_column(Text(clean(name)), justify="right" if numbers and position else "left", no_wrap=numbers)
    return made


def titled(title: str, shown: Table) -> Group:
    """A table under its title, which may be the wider one of the two."""
    return Group(Text(clean(title), style="bold"), shown)


def report_table(report: Report, baseline: Report | None = None) -> Table:
    """Every peer and the ensemble: accuracy, top-5 where it exists, negative log-likelihood, gain over a baseline."""
    top5 = report.ensemble.top5 is not None
    columns = ["network", "accuracy", *(["top-5"] if top5 else []), "NLL"]
    made = table([*columns, *(["baseline", "gain"] if baseline else [])])
    for index, score in enumerate(report.rows):
        other = None if baseline is None else baseline.rows[index]
        ensemble = index == len(report.peers)
        made.add_row(*_cells(score, top5, report.images, other), style="bold" if ensemble else "")
    return made


def result_table(result: Result, epochs: int, baseline: Result | None = None) -> Group:
    """The metrics after the last epoch, and those of the deployed network."""
    last = result.last
    made = report_table(last, baseline.last if baseline else None)
    made.add_section()
    deployed = _cells(
        result.deployed, last.ensemble.top5 is not None, last.images, baseline.deployed if baseline else None
    )
    made.add_row(Text(f"deployed: {clean(result.deployed.name)}, epoch {result.best.epoch}"), *deployed[1:])
    return titled(f"{last.images:,} {result.split} images, after the last epoch ({epochs})", made)


def _cells(score: Score, top5: bool, images: int, baseline: Score | None) -> list[Text]:
    cells = [Text(clean(score.name)), Text(percent(score.accuracy, images))]
    if top5:
        cells.append(Text("" if score.top5 is None else percent(score.top5, images)))
    cells.append(Text(f"{score.nll:.3f}"))
    if baseline is not None:
        gain = 100 * (score.accuracy - baseline.accuracy)
        digits = 2 if images >= 10_000 else 1
        cells.append(Text(percent(baseline.accuracy, images)))
        style = "" if may_be_chance(score.accuracy, baseline.accuracy, images) else "green" if gain > 0 else "red"
        cells.append(Text(f"{gain:+.{digits}f}", style=style))
    return cells


def result_text(result: Result, epochs: int, baseline: Result | None = None) -> list[str]:
    """What the table's metrics are from, in sentences."""
    last, best = result.last, result.best
    if result.split == "test":
        lines = [
            f"The first rows are from the test images after epoch {epochs}, the last; the test set was not used for "
            "model selection."
        ]
    else:
        lines = [
            f"There are no test images: the metrics are from the validation images after epoch {epochs}, the last. "
            "The deployed network was chosen by the same images, so its accuracy is optimistically biased."
        ]
    if best.accuracy == best.accuracy:
        lines.append(
            f"The deployed network is peer {result.deployed.name} as it was after epoch {best.epoch}, chosen by its "
            f"validation accuracy of {percent(best.accuracy)}."
        )
    else:
        lines.append(f"Without validation images the deployed network is peer {result.deployed.name} as it ended.")
    if baseline is not None:
        note = chance_note(last.ensemble.accuracy, baseline.last.ensemble.accuracy, last.images)
        lines.append(
            "The baseline is the same peers, data, epochs and seed with cross-entropy alone and no mixing. The gain is "
            f"in percentage points; {note} (Fisher's exact test of the ensembles)."
        )
    return lines
