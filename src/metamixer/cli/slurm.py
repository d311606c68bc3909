"""``metamixer slurm``: a batch script for a training on a cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metamixer.cli.exit_codes import told
from metamixer.cli.recipe_args import Sugar, recipe_of
from metamixer.cli.slurm_script import Job, batch_script
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError

# Settings of a job as they are called on the command line.
_SPELLED = {
    "gpus_per_node": "--gpus-per-node",
    "processes_per_node": "--processes-per-node",
    "cpus_per_process": "--cpus-per-process",
    "nodes": "--nodes",
    "restarts": "--max-restarts",
    "grace": "--grace",
    "time": "--time",
    "name": "--job-name",
}


@told
def slurm(words: Sequence[str], out: Path, allow_imports: bool = False, **settings: Any) -> int:
    """Print a batch script that follows a recipe in ``out``; ``settings`` are those of :class:`Job`.

    What would stop every process after hours in a queue is said here: a recipe that does not fit, peers that cannot be
    divided among the processes.
    """
    if not str(out).isprintable():
        raise RecipeError(f"--out {str(out)!r}: a path of printable characters would work")
    if stray := [word for word in words if not word.isprintable()]:
        raise RecipeError(f"{stray[0]!r}: a change of printable characters would work in a script")
    try:
        job = Job(**settings)
    except ValueError as error:
        name, sign, rest = str(error).partition("=")
        raise RecipeError(f"{_SPELLED.get(name, name)}{sign}{rest}") from None
    # This machine need not have the GPUs that the cluster has.
    recipe = recipe_of([*words, "train.accelerator=auto"], Sugar())
    _check(recipe, job)
    if out.exists() and not (out.is_dir() and ((out / "recipe.yaml").is_file() or not any(out.iterdir()))):
        raise RecipeError(f"--out {out}: neither a run to go on with nor free; another place would work")
    # `auto` would train on processors, unnoticed, where a machine of the cluster has lost its GPUs.
    where = [] if any(word.startswith("train.accelerator=") for word in words) else [_accelerator(job)]
    allowed = ["--allow-imports"] if allow_imports else []
    sys.stdout.write(batch_script(job, [*words, *where, *allowed], out))
    return 0


def _accelerator(job: Job) -> str:
    return f"train.accelerator={'cuda' if job.gpus_per_node else 'cpu'}"


def _check(recipe: Recipe, job: Job) -> None:
    """What trainer and process grid refuse about processes, hours earlier."""
    train, world = recipe.train, job.processes
    if world % train.peer_groups:
        raise RecipeError(
            f"train.peer_groups: {train.peer_groups} groups of equal size cannot be made of {world} processes "
            f"({job.nodes} x {job.per_node})"
        )
    shares = world // train.peer_groups
    if train.batch_size < shares:
        raise RecipeError(
            f"train.batch_size: {train.batch_size} images cannot be shared among {shares} processes; a batch is that "
            f"of all processes together, and {shares} or more would work"
        )
    parts = shares * train.micro_batches
    if train.mixing_groups is not None and train.mixing_groups % parts:
        raise RecipeError(
            f"train.mixing_groups: {train.mixing_groups} with {parts} parts of a batch; {parts} would work"
        )
