"""Write the metrics of a run to its folder."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from metamixer.core.files import write_whole
from metamixer.training.callbacks import EpochRecord, Start, StepRecord, flat_row


class Files:
    """Writes ``metrics.jsonl`` and ``metrics.csv`` in a run folder, with one row per epoch.

    A resumed run first removes the rows after its checkpoint, so that each epoch occurs once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[dict[str, float]] = []

    def on_start(self, start: Start) -> None:
        """Keep the rows up to ``start.step``."""
        path = self._folder / "metrics.jsonl"
        kept: list[str] = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # the last line of a killed process
                    continue
                if record["step"] <= start.step:
                    kept.append(line)
                    self._rows.append(flat_row(record))
        write_whole(path, "".join(line + "\n" for line in kept))
        self._write_csv()

    def on_step(self, record: StepRecord) -> None:
        """Steps are not written: reading them would stall the device."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Append one row to each file."""
        row = record.flat()
        self._rows.append(row)
        with (self._folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record.as_dict()) + "\n")
        self._write_csv()

    def on_end(self) -> None:
        """Nothing to do: all rows are written already."""

    def _write_csv(self) -> None:
        # Epochs without validation have fewer columns, so take the names from all rows.
        if names := list(dict.fromkeys(name for row in self._rows for name in row)):
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=names)
            writer.writeheader()
            writer.writerows(self._rows)
            write_whole(self._folder / "metrics.csv", text.getvalue(), newline="")
