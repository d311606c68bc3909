"""Show the progress of training in the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from metamixer.cli.console import BETWEEN_LINES, say
from metamixer.core.progress import Watcher
from metamixer.core.text import clean, percent

if TYPE_CHECKING:
    from metamixer.metrics.network_scores import Score
    from metamixer.training.callbacks import EpochRecord, Start, StepRecord

_MOST_LINES = 10  # the number of lines for a whole run without a bar
_SHORTEST = 12  # the least number of characters of the name of a peer under the bar
_MUCH = 0.1  # the share of time spent waiting for data above which a hint is shown
_HELP = {  # by TrainLoader.reading
    "memory": "cropping and flipping images in memory takes it: a smaller data.image_size takes less",
    "augment": "data.workers=2, or more up to the number of cores, augments images beside them; data.augment=light, or "
    "a smaller data.image_size, takes less",
    "disk": "data.workers=2, or more up to the number of cores, decodes images beside them; data.cache=auto decodes "
    "them once; a smaller data.image_size takes less",
    "workers": "data.cache=auto, which decodes images once, more data.workers, up to the number of cores, or a smaller "
    "data.image_size help",
}


class Progress:
    """Shows the progress of training: a bar in a terminal, elsewhere a few lines for the whole run.

    The terms of a step are on the device; they are read a few times per second, not at every step.

    Args:
        console: the console.
        title: text before the epoch.
        every: seconds between two reads of terms from the device.
        clock: returns seconds.
        otherwise: watcher of loops during training if there is no bar.
    """

    def __init__(
        self,
        console: Console,
        title: str = "",
        every: float = 0.25,
        clock: Callable[[], float] = time.perf_counter,
        otherwise: Watcher = lambda *_: None,
    ) -> None:
        self.console, self._title, self._every, self._clock = console, title, every, clock
        self._live: Live | None = None
        self._terms: dict[str, list[float]] = {}
        self._train: list[float] = []
        self._val: list[Score] = []
        self._val_epoch = self._done_epoch = 0
        self._validating = Spinner("line", "validating")
        self._loop, self._otherwise = "", otherwise
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
        self._began = self._looked = self._at = self._said = self._clock()
        for note in () if start.step else start.notes:
            self._say(note)
        if self.console.is_terminal:
            self._live = Live(get_renderable=self.view, console=self.console, refresh_per_second=4)
            self._live.start()
        elif start.step:
            self._say(f"resuming from step {start.step}/{self._total}")

    def on_step(self, record: StepRecord) -> None:
        """Count steps, and read the terms from time to time."""
        self._epoch, self._step = record.epoch, record.step
        self._at = self._clock()
        self._seen += record.images
        self._waited += record.waited
        self._seconds += record.seconds
        now = self._clock()
        if now - self._looked < (BETWEEN_LINES if self._live is None else self._every):
            return
        rate = self._seen / max(self._seconds, 1e-9)
        share = self._waited / max(self._seconds, 1e-9)
        old = 0.7 if self._rate else 0.0
        self._rate = old * self._rate + (1 - old) * rate
        self._waiting = old * self._waiting + (1 - old) * share
        self._seen, self._waited, self._seconds, self._looked = 0, 0.0, 0.0, now
        if self._live is None:
            if now - self._said >= BETWEEN_LINES:
                self._say(f"epoch {self._epoch}/{self._start.epochs}  step {self._step}/{self._total}  {self._speed()}")
            return
        self._terms = {name: values.tolist() for name, values in record.terms.items()}

    def watch(self, what: str, done: int, total: int) -> None:
        """Show a loop during or after training, such as validation: see :mod:`metamixer.core.progress`."""
        if self._live is None:
            self._otherwise(what, done, total)
        else:
            self._loop = f"{what} {done}/{total}" if done < total else ""

    def on_epoch(self, record: EpochRecord) -> None:
        """Update the accuracies; without a bar, print a line. Print a hint once if steps wait for data."""
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
            self._say(f"epoch {record.epoch}/{self._start.epochs}  {metrics}  {self._speed()}")
        self._help(record)

    def on_end(self) -> None:
        """Stop the bar, leaving its last state on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def view(self) -> RenderableType:
        """The bar, the shares of time, and a line for each peer."""
        validating = self._step == self._epoch * self._start.steps_per_epoch and self._done_epoch < self._epoch
        self._validating.update(text=self._loop or "validating")
        bar = Table.grid(padding=(0, 2))
        for _ in range(4):
            bar.add_column(no_wrap=True)
        bar.add_row(
            Text(f"{clean(self._title)} epoch {self._epoch}/{self._start.epochs}".strip(), style="bold"),
            ProgressBar(total=max(1, self._total), completed=self._step, width=28),
            Text(self._left()),
            *([self._validating] if validating or self._loop else []),
        )
        peers = Table.grid(padding=(0, 2))
        rows = [self._row(index) for index in range(len(self._names))]
        taken = sum(max(cell_len(row[place].plain) for row in rows) + 2 for place in range(len(rows[0])))
        if self.console.width - taken < _SHORTEST:  # leave out terms rather than wrap numbers
            rows = [row[len(self._terms) :] for row in rows]
            taken = sum(max(cell_len(row[place].plain) for row in rows) + 2 for place in range(len(rows[0])))
        for name, row in zip(self._names, rows, strict=True):
            title = Text(f"  {name}")
            title.truncate(max(_SHORTEST, min(40, self.console.width - taken)), overflow="ellipsis")
            peers.add_row(title, *row)
        if self._val and len(self._names) > 1:
            blank = [Text("")] * (len(rows[0]) - 1)
            peers.add_row(Text("  ensemble"), *blank, Text(f"val {percent(self._val[-1].accuracy)}", style="green"))
        return Group(bar, *([self._sides()] if self._rate else []), peers)

    def _row(self, index: int) -> list[Text]:
        """The cells of a peer."""
        cells = [Text(f"{label} {values[index]:.3f}") for label, values in self._terms.items()]
        if self._train:
            cells.append(Text(f"train {percent(self._train[index])}"))
        if self._val:
            cells.append(Text(f"val {percent(self._val[index].accuracy)}", style="green"))
        return cells

    def _sides(self) -> Text:
        """The overall speed, the shares of time of data and computation, and the speed of each without the other.

        That of computation is an upper bound, because an accelerator may compute while this process waits.
        """
        full, empty = "▰▱" if self.console.encoding.startswith("utf") else "#-"
        data = round(10 * self._waiting)
        alone = ""
        if self._start.reading in ("memory", "augment", "disk") and self._waiting > 0.001:
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

    def _speed(self) -> str:
        waits = f" (waits for data {100 * self._waiting:.0f} % of the time)" if self._waiting > _MUCH else ""
        return f"{self._rate:,.0f} images/s{waits}  {self._left()}"

    def _left(self) -> str:
        done = self._step - self._first
        if not done or self._step >= self._total:
            return ""
        # Estimated at the last step and counted down from there, so that long steps or validation do not increase it.
        left = (self._at - self._began) / done * (self._total - self._step)
        seconds = round(max(0.0, left - (self._clock() - self._at)))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02d}:{seconds % 60:02d} left"

    def _say(self, text: str) -> None:
        say(f"{self._title} {text}".strip(), console_=self.console)
        self._said = self._clock()
