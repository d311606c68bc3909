"""``metamixer train``: train a recipe in a folder, its baseline first if asked, and show the result."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from metamixer.cli.console import console, say
from metamixer.cli.exit_codes import Stopped, allowed_again, resume_command
from metamixer.cli.recipe_args import Sugar, folder_name, recipe_of
from metamixer.cli.result_tables import result_table, result_text
from metamixer.cli.training_progress import Progress
from metamixer.cli.waiting import Waiting
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.files import write_whole
from metamixer.core.progress import watched_by
from metamixer.core.text import clean, counted, listed
from metamixer.data import Data, WorkerError
from metamixer.runs.before_data import advice, check_before_data, unequal_classes
from metamixer.runs.budget_warning import short_budget
from metamixer.runs.claim import claimed, new_folder
from metamixer.runs.data_record import load_data
from metamixer.runs.run import Result, check_outside_of_data, check_same, check_start, longer, read_recipe, resumed
from metamixer.runs.run import train as follow
from metamixer.training.distributed import ProcessLost
from metamixer.training.interrupt import Interrupted
from metamixer.training.started import is_first_process, started_from_outside

_USUAL = ("held out for", "training images kept")  # notes that everyone expects


def train_recipe(
    words: Sequence[str], sugar: Sugar, out: Path | None, resume: str | None, baseline: bool, quiet: bool
) -> int:
    """Train, and return the exit code."""
    if not is_first_process():
        return _work_along(words, sugar, out, resume)
    recipe, folder, going_on = _begin(words, sugar, out, resume)
    with claimed(folder, resume=going_on):
        return _train(recipe, folder, going_on, baseline, quiet)


def _train(recipe: Recipe, folder: Path, going_on: bool, baseline: bool, quiet: bool) -> int:
    check_start(recipe)
    plain = None
    if baseline or (going_on and (folder / "baseline" / "recipe.yaml").is_file()):
        plain = Recipe.of(recipe.as_dict(), ["loss=independent", "mixer=none"])
        if plain.digest == recipe.digest:
            raise RecipeError("--baseline: the recipe itself is the baseline, cross-entropy alone and no mixing")
        if recipe.train.devices * recipe.train.num_nodes > 1 or started_from_outside():
            raise RecipeError(
                "--baseline: trained by one process only; loss=independent mixer=none is a run of its own"
            )
    check_before_data(recipe)
    warnings = advice(recipe)
    data = load_data(recipe, section=resumed(recipe, folder)[1])
    _tell_about(data, quiet)
    if not going_on and (budget := short_budget(recipe, len(data.train))):
        warnings.append(budget)
    if not going_on and (unequal := unequal_classes(recipe, data)):
        warnings.append(unequal)
    for warning in warnings:
        say(f"warning: {warning}", style="yellow", stderr=True)
    if not quiet:
        say(_headline(recipe, data, folder))
    try:
        before = None
        if plain is not None:
            if not going_on:  # so that --resume finds the recipe while the baseline trains
                write_whole(folder / "recipe.yaml", recipe.as_yaml())
            before = _follow(plain, folder / "baseline", data, going_on, quiet, "baseline:")
        # With a baseline the folder is not empty any more, and a run that has not begun begins.
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


def _work_along(words: Sequence[str], sugar: Sugar, out: Path | None, resume: str | None) -> int:
    """Another process of a run, started with the same arguments: prints nothing, and gets the folder from the first."""
    folder = out if resume in (None, "auto") else Path(resume)
    going_on = resume is not None and folder is not None and (folder / "recipe.yaml").is_file()
    named = bool(words) or sugar != Sugar()
    recipe = recipe_of(words, sugar, folder if going_on and (resume != "auto" or not named) else None)
    if going_on and folder is not None:
        recipe = longer(recipe, folder)
    try:
        follow(recipe, folder or Path(), resume=going_on)
    except Interrupted as interrupted:
        # The first process's launcher takes any other code for an accident, and kills it while it still writes.
        return 128 + interrupted.signal if started_from_outside() else 0
    return 0


def _begin(words: Sequence[str], sugar: Sugar, out: Path | None, resume: str | None) -> tuple[Recipe, Path, bool]:
    """The recipe, its folder, and whether the run is resumed there."""
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
        recipe = recipe_of(words, sugar, folder)  # allows what the command names, before the folder's recipe is read
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
        with watched_by(_unseen if quiet else progress.watch):
            return follow(recipe, folder, resume=resume, callbacks=() if quiet else (progress,), data=data)


def _unseen(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def _clear(folder: Path) -> None:
    """Take away what a run left that failed before its first step: the next attempt may have the name."""
    for place in (folder / "baseline", folder):
        if place.is_dir() and not (place / "metrics.jsonl").exists():
            for name in ("recipe.yaml", "data.json", "environment.json"):
                (place / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty; the folder that is claimed goes with its lock
                place.rmdir()


def _tell_about(data: Data, quiet: bool) -> None:
    for note in data.notes:
        usual = any(words in note for words in _USUAL)
        if not usual:
            say(f"warning: {note}", style="yellow", stderr=True)
        elif not quiet:
            say(f"data: {note}", style="dim")
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
