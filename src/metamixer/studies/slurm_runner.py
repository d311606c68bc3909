"""Run a study as a job array of SLURM, with submitit (an extra)."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metamixer.config.yaml_file import RecipeError
from metamixer.core import trusted_imports
from metamixer.studies.child_process import Exit, Halted, hand_on, signals
from metamixer.studies.forks import Forks
from metamixer.studies.local_runner import Ended, begin
from metamixer.studies.study_file import Cell, Measure

DEFAULTS = {"time": 60, "max_num_timeout": 100}
"""Time limit of a job in minutes, and how often a run may continue in another job."""


@dataclass
class Task:
    """A run as a job: a child process that stops with a checkpoint when the time of the job is over.

    Args:
        cell: the run.
        folder: absolute path of the study folder.
        measure: measurements after training.
        threads: number of threads of the run.
        nice: increment of its niceness.
    """

    cell: Cell
    folder: Path
    measure: Measure
    threads: int
    nice: int = 0

    def __call__(self) -> Exit:
        """Do the run, and stop it on signals: SIGUSR2 means that the time is over, others end the job permanently."""
        # Imports were allowed when the recipe was read by the study.
        trusted_imports.allow(*trusted_imports.named_in(self.cell.recipe.as_dict()))
        received: list[int] = []
        # SLURM signals all processes of a job: the run inherits that SIGUSR2 is ignored, which would kill it.
        handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            forks = Forks("metamixer.studies", self.threads, forked=False)
            child = begin(self.cell, self.folder, self.measure, forks, self.nice)
            for number in handlers:
                signal.signal(number, lambda number, _: received.append(number))
            while (found := child.look()) is None:
                if received:
                    hand_on([child], signal.SIGTERM)
                time.sleep(0.1)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if received and found.fault is not None:
            if signal.SIGUSR2 in received:
                signal.raise_signal(signal.SIGUSR2)  # the handler of submitit requeues the job
            sys.exit(128 + received[0])
        return found

    def checkpoint(self) -> Any:
        """The job that submitit puts back into the queue: the same one, which resumes the run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_on_slurm(
    cells: Sequence[Cell],
    folder: Path,
    measure: Measure,
    *,
    threads: int,
    nice: int = 0,
    options: Mapping[str, Any],
    ended: Callable[[Ended], None],
) -> None:
    """Submit all cells as a job array, and wait for its end.

    A run whose job is out of time stops with a checkpoint, and its job is requeued. All machines must have access to
    the folder and the data under the same paths. Scripts and logs of the jobs are in ``slurm/``.

    Args:
        cells: the runs.
        folder: the study folder.
        measure: measurements after training.
        threads: number of CPUs per job.
        nice: increment of the niceness of runs.
        options: options of submitit for SLURM, such as ``partition``; ``max_num_timeout``: how often a run may continue
            in another job; ``cluster``: ``slurm``, or ``local`` and ``debug`` for tests on this machine.
        ended: called when a run has ended.

    Raises:
        RecipeError: submitit is not installed, there is no SLURM, or an option is not valid.
        Halted: SIGINT or SIGTERM was received; the jobs were cancelled.
    """
    executor, waits = _executor(folder.resolve() / "slurm", threads, {**DEFAULTS, **options})
    with signals() as received:
        with executor.batch():
            submitted = [executor.submit(Task(cell, folder.resolve(), measure, threads, nice)) for cell in cells]
        jobs = dict(zip(cells, submitted, strict=True))
        while jobs and not received:
            for cell, job in list(jobs.items()):
                if not waits or job.done():
                    del jobs[cell]
                    ended(_outcome(cell, job))
            time.sleep(0.2 if jobs else 0)
        if received:
            for job in jobs.values():
                job.cancel(check=False)
            raise Halted(received[0])


def _executor(folder: Path, threads: int, options: dict[str, Any]) -> tuple[Any, bool]:
    """The executor of jobs, and whether they run in other processes."""
    try:
        import submitit
    except ImportError:
        raise RecipeError("engine slurm needs an extra: pip install 'metamixer[slurm]'") from None
    from submitit.slurm.slurm import SlurmExecutor

    cluster, times = options.pop("cluster", "slurm"), options.pop("max_num_timeout")
    if cluster not in ("slurm", "local", "debug"):
        raise RecipeError(f"--slurm cluster={cluster}: accepted are slurm, local and debug")
    options = {"cpus_per_task": threads, "job_name": "metamixer", **options}
    if unknown := sorted(options.keys() - SlurmExecutor._valid_parameters()):
        known = sorted({*SlurmExecutor._valid_parameters(), "cluster", "max_num_timeout"})
        raise RecipeError(f"--slurm {unknown[0]}: accepted are {', '.join(known)}")
    if cluster == "slurm" and SlurmExecutor.affinity() < 0:
        raise RecipeError("engine slurm: srun is not on this machine; accepted is a machine that submits jobs to SLURM")
    limits = {} if cluster == "debug" else {f"{cluster}_max_num_timeout": times}
    executor = submitit.AutoExecutor(folder, cluster=cluster, **limits)
    try:
        executor.update_parameters(
            timeout_min=options.pop("time"), **{f"slurm_{name}": value for name, value in options.items()}
        )
    except (AssertionError, NameError, TypeError, ValueError) as error:
        raise RecipeError(f"--slurm: {error}") from error
    return executor, cluster != "debug"


def _outcome(cell: Cell, job: Any) -> Ended:
    error = job.exception()
    if error is None:
        found: Exit = job.result()
        return Ended(cell, found.seconds, found.fault, found.bytes)
    lines = str(error).strip().splitlines()
    return Ended(cell, 0.0, f"job {job.job_id}: {lines[-1]} (its logs are {job.paths.stderr} and {job.paths.stdout})")
