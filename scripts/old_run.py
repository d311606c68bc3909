"""Make ``tests/runs/before.zip``: a run folder that an older version was stopped in, inside of its last epoch.

With it comes ``whole.json``, the report of the same run that was not stopped.

Give the source folder of the older version, taken from its commit::

    git archive COMMIT | tar x -C OLD; python scripts/old_run.py OLD/src tests/runs/before.zip
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    "--device", "cpu", "--quiet", "data.train_limit=20", "train.epochs=2", "train.batch_size=32",
    "peers=[{name: resnet8, widths: [2, 2, 4, 4]}, {name: resnet8, widths: [2, 2, 4, 4]}]", "optim.lr=0.02",
)  # fmt: skip


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """The training of the older version."""
    environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "metamixer", "train", "--out", str(out), *WORDS]
    return subprocess.Popen(command, env=environment, cwd=out.parent)


def main(source: Path, archive: Path) -> None:
    """Train, once to the end and once until the first epoch is written, and pack what tests need."""
    with tempfile.TemporaryDirectory() as place:
        whole, run = Path(place) / "whole", Path(place) / "before"
        if code := start(source, whole).wait():
            raise SystemExit(f"the training ended with {code}")
        running = start(source, run)
        rows = run / "metrics.jsonl"
        while running.poll() is None and not (rows.exists() and rows.read_text()):
            time.sleep(0.002)
        running.send_signal(signal.SIGTERM)
        if (code := running.wait()) != 128 + signal.SIGTERM:
            raise SystemExit(f"the training ended with {code} before it was stopped")
        shutil.rmtree(run / "events")
        environment = json.loads((run / "environment.json").read_text())
        (run / "environment.json").write_text(json.dumps(environment | {"command": ["metamixer", "train", *WORDS]}))
        shutil.copy(whole / "report.json", run / "whole.json")
        shutil.make_archive(str(archive.with_suffix("")), "zip", run)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
