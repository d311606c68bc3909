"""``python -m metamixer.tuning JOB.json``: one trial of a search, started by the process of the search."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from metamixer.config.yaml_file import RecipeError
from metamixer.data import DataError
from metamixer.training.checkpoint import CheckpointError
from metamixer.training.interrupt import Interrupted
from metamixer.training.trainer import TrainingError
from metamixer.tuning.trial_worker import run_trial
from metamixer.tuning.tune_file import Search


def main() -> None:
    """Do the job; an error is the last line of the log."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if job["nice"] and hasattr(os, "nice"):  # not on Windows
        os.nice(job["nice"])
    try:
        run_trial(Search.of(job["search"]), Path(job["folder"]), job["number"], job["threads"])
    except Interrupted as stopped:
        sys.exit(128 + stopped.signal)
    except (RecipeError, DataError, TrainingError, CheckpointError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
