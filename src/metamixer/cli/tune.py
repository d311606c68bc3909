"""``metamixer tune``: search for good settings, defined in a file, and write the best recipe."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metamixer.cli.console import console, say, table, titled
from metamixer.cli.options import AllowImports
from metamixer.cli.study import default_folder
from metamixer.core.text import clean, percent

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from metamixer.tuning.tune_file import Search

FAILED = 1
_SHOWN = 10


def tune(
    file: Annotated[Path, typer.Argument(metavar="TUNE.yaml", help="File with a recipe and ranges of its settings.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Output folder. [default: runs/TUNE]")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Trials in all. [default: those of the file]")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Parallel trials, as far as memory allows.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads per trial. [default: the cores, divided among the trials]"),
    ] = None,
    nice: Annotated[
        int, typer.Option("--nice", metavar="N", min=0, max=19, help="Lower the priority of the trials by N.")
    ] = 0,
    allow_imports: AllowImports = False,
) -> int:
    """Search for good settings of a recipe; a search that was stopped is resumed."""
    from metamixer.export.errors import need

    need("tune", "optuna")
    from metamixer.studies import Halted
    from metamixer.tuning.outcome import PLOTS, ranked
    from metamixer.tuning.search import AllFailed
    from metamixer.tuning.search import tune as search_for
    from metamixer.tuning.tune_file import Search

    search, folder = Search.read(file), default_folder(file) if out is None else out
    wanted = trials or search.content.trials
    say(f"{wanted} trials of {', '.join(search.space)}; in {folder}")

    def ended(study: Study, trial: FrozenTrial) -> None:
        say(f"[{trial.number + 1}/{wanted}] {_settings(trial)}: {_outcome(search, study, trial)}")

    try:
        study = search_for(search, folder, trials=trials, jobs=jobs, threads=threads, nice=nice, ended=ended)
    except Halted as halted:
        say(str(halted), style="yellow", stderr=True)
        return 128 + halted.signal
    except AllFailed as failed:
        say(f"error: {failed}", style="red", stderr=True)
        return FAILED
    if not (best := ranked(study)):
        say("error: no trial ran to its end", style="red", stderr=True)
        return FAILED
    _show(search, study)
    say("\nwritten:", style="bold")
    for name in ("best.yaml", "trials.csv", *PLOTS):
        if (folder / name).is_file():
            say(f"  {folder / name}")
    recipe, run = (shlex.quote(str(folder / name)) for name in ("best.yaml", f"trials/{best[0].number:04}"))
    say(f"next: metamixer train {recipe} trains the best recipe, such as with another train.seed;")
    say(f"      metamixer predict {run} IMAGE_OR_FOLDER uses the trial's network")
    return 0


def _show(search: Search, study: Study) -> None:
    from metamixer.tuning.outcome import importances, ranked

    done = ranked(study)
    shown = table(["trial", search.content.metric, *search.space])
    for trial in done[:_SHOWN]:
        cells = (_shown(trial.params[key]) for key in search.space)
        shown.add_row(str(trial.number), _value(search, trial.value), *cells)
    states = [trial.state.name for trial in study.get_trials(deepcopy=False)]
    caption = f"{len(done)} of {len(states)} trials ran to their end, {states.count('PRUNED')} were stopped early"
    console().print(titled(f"validation {search.content.metric}, last epoch; {caption}", shown))
    if shares := importances(study):
        say("importance: " + ", ".join(f"{key} {percent(share)}" for key, share in shares.items()))
    if failed := states.count("FAIL"):
        say(f"{failed} failed; the reasons are in trials.csv", style="yellow", stderr=True)


def _settings(trial: FrozenTrial) -> str:
    return clean(", ".join(f"{key}={_shown(value)}" for key, value in trial.params.items()))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else clean(value)


def _value(search: Search, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if "nll" in search.content.metric else percent(value)


def _outcome(search: Search, study: Study, trial: FrozenTrial) -> str:
    from metamixer.tuning.outcome import ranked

    if "fault" in trial.user_attrs:
        return f"failed: {trial.user_attrs['fault']}"
    best = f" (best so far: {_value(search, done[0].value)})" if (done := ranked(study)) else ""
    if trial.state.name == "PRUNED":
        epoch = max(trial.intermediate_values, default=0)
        return ("diverged" if "diverged" in trial.user_attrs else "stopped") + f" after epoch {epoch}{best}"
    return _value(search, trial.value) + best
