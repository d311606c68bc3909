"""``metamixer train``: train a recipe, with its baseline first if requested, and show the result."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from metamixer.cli.console import console, say
from metamixer.cli.exit_codes import Stopped, allowed_again, resume_command
from metamixer.cli.recipe_args import Sugar, folder_name, recipe_of
from metamixer.cli.result_tables import result_table, result_text
from metamixer.cli.training_cost import Measured, TrainingCost
from metamixer.cli.training_progress import Progress
from metamixer.cli.waiting import Waiting
from metamixer.config.data_section import DataSection
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import write_whole
from metamixer.core.progress import watched_by
from metamixer.core.text import clean, counted, listed
from metamixer.data import Data, WorkerError
from metamixer.runs.before_data import advice, check_before_data, unequal_classes
from metamixer.runs.budget_warning import bounded_strength, short_budget
from metamixer.runs.claim import claimed, new_folder
from metamixer.runs.data_record import load_data
from metamixer.runs.run import Result, check_outside_of_data, check_same, check_start, longer, read_recipe, resumed
from metamixer.runs.run import train as follow
from metamixer.runs.threads import set_threads
from metamixer.training.distributed import ProcessLost, device_of
from metamixer.training.interrupt import Interrupted
from metamixer.training.started import is_first_process, started_from_outside

_USUAL = ("held out for", "training images kept")  # expected notes, which are not shown as warnings


def train_recipe(
    words: Sequence[str],
    sugar: Sugar,
    out: Path | None,
    resume: str | None,
    baseline: bool,
    quiet: bool,
    threads: int | None = None,
) -> int:
    """Train a recipe and return the exit code."""
    if not is_first_process():
        return _work_along(words, sugar, out, resume)
    recipe, folder, going_on = _begin(words, sugar, out, resume)
    check_start(recipe)
    said = _threads(recipe, threads, folder if going_on else None)
    with claimed(folder, resume=going_on):
        return _train(recipe, folder, going_on, baseline, quiet, said)


def dry_train(words: Sequence[str], sugar: Sugar, threads: int | None) -> int:
    """Print the cost of training, measured in its first steps in a temporary folder."""
    recipe = recipe_of(words, sugar)
    if not _alone(recipe):
        raise RecipeError("--dry-run: measured in one process only; accepted are train.devices=1 and train.num_nodes=1")
    check_start(recipe)
    said = _threads(recipe, threads)
    check_before_data(recipe)
    data = _data(recipe, recipe.data, [*said, *advice(recipe)], quiet=False)
    recipe = recipe.model_copy(update={"train": replace(recipe.train, trackers=())})
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Measured):
        cost = TrainingCost(recipe, data, say, device_of(recipe.train.accelerator).type, only=True)
        follow(recipe, Path(folder, "run"), callbacks=[cost], data=data)
    return 0


def _threads(recipe: Recipe, asked: int | None, run: Path | None = None) -> list[str]:
    if _alone(recipe):
        return set_threads(asked, run)
    if asked is not None:
        raise RecipeError(f"--threads {asked}: for one process only; OMP_NUM_THREADS sets those of each of several")
    return []


def _alone(recipe: Recipe) -> bool:
    return recipe.train.devices * recipe.train.num_nodes == 1 and not started_from_outside()


def _train(recipe: Recipe, folder: Path, going_on: bool, baseline: bool, quiet: bool, warnings: list[str]) -> int:
    plain = None
    if baseline or (going_on and (folder / "baseline" / "recipe.yaml").is_file()):
        plain = Recipe.of(recipe.as_dict(), ["loss=independent", "mixer=none"])
        if plain.digest == recipe.digest:
            raise RecipeError("--baseline: the recipe itself is the baseline, cross-entropy alone and no mixing")
        if not _alone(recipe):
            raise RecipeError(
                "--baseline: trained by one process only; loss=independent mixer=none is a run of its own"
            )
    check_before_data(recipe)
    data = _data(recipe, resumed(recipe, folder)[1], [*warnings, *advice(recipe)], quiet, new=not going_on)
    if not quiet:
        say(_headline(recipe, data, folder))
    try:
        before = None
        if plain is not None:
            if not going_on:  # so that --resume finds the recipe while the baseline trains
                write_whole(folder / "recipe.yaml", recipe.as_yaml())
            before = _follow(plain, folder / "baseline", data, going_on, quiet, "baseline:")
        # With a baseline the folder is not empty any more; resume=True also starts a new run.
        result = _follow(recipe, folder, data, going_on or plain is not None, quiet, "run:" if plain else "")
    except Interrupted as interrupted:
        raise Stopped(interrupted, resume_command(folder)) from None
    except ProcessLost as lost:
        raise ProcessLost(f"{lost}; resume with: {resume_command(folder)}") from lost
    except WorkerError as dead:
        raise WorkerError(f"{dead}; resume with: {resume_command(folder)}") from dead
    except BaseException:
        if not going_on:
            _clear(folder)
        raise
    _show(result, result.epochs, before)
    return 0


def _data(recipe: Recipe, section: DataSection, warnings: list[str], quiet: bool, new: bool = True) -> Data:
    """Load the data, and print notes and warnings about data and recipe."""
    data = load_data(recipe, section=section)
    _tell_about(data, quiet)
    hints = [short_budget(recipe, len(data.train)), unequal_classes(recipe, data)] if new else []
    for warning in (*warnings, *filter(None, hints)):
        say(f"warning: {warning}", style="yellow", stderr=True)
    return data


def _work_along(words: Sequence[str], sugar: Sugar, out: Path | None, resume: str | None) -> int:
    """Train in another process of a run, which prints nothing and gets the folder from the first process."""
    folder = out if resume in (None, "auto") else Path(resume)
    going_on = resume is not None and folder is not None and (folder / "recipe.yaml").is_file()
    named = bool(words) or sugar != Sugar()
    recipe = recipe_of(words, sugar, folder if going_on and (resume != "auto" or not named) else None)
    if going_on and folder is not None:
        recipe = longer(recipe, folder)
    try:
        follow(recipe, folder or Path(), resume=going_on)
    except Interrupted as interrupted:
        # The launcher of the first process treats other codes as failures, and would kill it while it still writes.
        return 128 + interrupted.signal if started_from_outside() else 0
    return 0


def _begin(words: Sequence[str], sugar: Sugar, out: Path | None, resume: str | None) -> tuple[Recipe, Path, bool]:
    """The recipe, its folder, and whether a run is resumed."""
    if resume is None:
        recipe = recipe_of(words, sugar)
        name = folder_name(recipe)
        check_outside_of_data(recipe.data, Path("runs", name) if out is None else out)
        return recipe, new_folder(Path("runs"), name) if out is None else out, False
    if resume == "auto":
        if out is None:
            raise RecipeError("--resume auto needs --out FOLDER, the run to resume or to start")
        folder = out
        if not (folder / "recipe.yaml").is_file():
            return _begin(words, sugar, out, None)
        named, sugar = bool(words) or sugar != Sugar(), sugar.from_here()
        recipe = recipe_of(words, sugar, None if named else folder)
    else:
        folder, sugar = Path(resume), sugar.from_here()
        if out not in (None, folder):
            raise RecipeError(f"--resume {folder} says where the run is; leave --out {out} out")
        recipe = recipe_of(words, sugar, folder)  # allows imports in the command before the recipe is read
    recipe = longer(recipe, folder)
    check_same(recipe, folder)
    known = read_recipe(folder)
    if recipe.at_home(known).differences(known):
        ended = recipe.train.continued[-1]
        more = recipe.train.epochs - ended
        following = f"epoch {ended + 1} follows" if more == 1 else f"epochs {ended + 1} to {ended + more} follow"
        say(f"the run of {counted(ended, 'epoch')} has ended: {following}, with a new learning-rate schedule over them")
    return recipe, folder, True


def _follow(recipe: Recipe, folder: Path, data: Data, resume: bool, quiet: bool, title: str) -> Result:
    with contextlib.closing(Waiting()) as waiting:
        progress = Progress(console(), title, otherwise=waiting)
        device = device_of(recipe.train.accelerator).type
        cost = TrainingCost(
            recipe, data, lambda text: say(f"{title} {text}".strip(), console_=progress.console), device
        )
        with watched_by(_unseen if quiet else progress.watch):
            return follow(recipe, folder, resume=resume, callbacks=() if quiet else (progress, cost), data=data)


def _unseen(what: str, done: int, total: int) -> None:
    """A watcher that shows nothing."""


def _clear(folder: Path) -> None:
    """Remove the files of a run that failed before its first step, so that the next attempt can use the folder."""
    for place in (folder / "baseline", folder):
        if place.is_dir() and not (place / "metrics.jsonl").exists():
            for name in ("recipe.yaml", "data.json", "environment.json"):
                (place / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty; a claimed folder is removed with its lock
                place.rmdir()


def _tell_about(data: Data, quiet: bool) -> None:
    for note in data.notes:
        usual = any(words in note for words in _USUAL)
        if not usual:
            say(f"warning: {note}", style="yellow", stderr=True)
            if "skipped" in note:
                _list_skipped(data)
        elif not quiet:
            say(f"data: {note}", style="dim")


def _list_skipped(data: Data) -> None:
    for name, cause in data.skipped[:5]:
        say(f"  {name}: {cause}", style="yellow", stderr=True)
    if len(data.skipped) > 5:
        say(f"  and {len(data.skipped) - 5} more; report.json will list them all", style="yellow", stderr=True)


def _headline(recipe: Recipe, data: Data, folder: Path) -> str:
    size = "x".join(map(str, (data.channels, *data.size)))
    peers = " and ".join(peer.name for peer in recipe.peers) + (" alone" if len(recipe.members) == 1 else "")
    return (
        f"{data.name}: {len(data.train):,} training images of {size}, {len(data.classes)} classes "
        f"({listed(map(clean, data.classes))})\n"
        f"{peers} by {recipe.loss.name} + {recipe.mixer.name}, "
        f"{counted(recipe.train.epochs, 'epoch')}, into {folder}"
        + (f"\n{note}" if (note := bounded_strength(recipe)) else "")
    )


def _show(result: Result, epochs: int, before: Result | None) -> None:
    console().print(result_table(result, epochs, before))
    for line in result_text(result, epochs, before):
        say(line)
    folder = result.folder
    written = [result.model, folder / "report.json", folder / "metrics.csv"]
    say("\nwritten:", style="bold")
    for path in written:
        say(f"  {path}")
    run = shlex.quote(str(folder))
    say(f"next: {allowed_again(f'metamixer predict {run} IMAGE_OR_FOLDER --out predictions.csv')}")
    evaluating, reporting = (allowed_again(f"metamixer {name} {run}") for name in ("evaluate", "report"))
    say(f"      {evaluating}, then {reporting}: one page about all of it")
