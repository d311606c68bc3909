"""Batch scripts for SLURM: one torchrun on each machine, a checkpoint before time is over, and going on after it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")
_ASIDE = 10  # seconds of the grace that srun and the shell may take beside the checkpoint


@dataclass(frozen=True)
class Job:
    """What a batch script asks the cluster for.

    Args:
        nodes: machines.
        gpus_per_node: GPUs of each, and processes; 0: it computes on processors.
        processes_per_node: None: as many as GPUs, or one.
        cpus_per_process: processor cores of each; None: as the cluster has it.
        time: in a form that SLURM knows, such as ``24:00:00``; None: as the cluster has it.
        name: of the job.
        grace: seconds before the end of the time when the run is asked to stop.
        restarts: how often torchrun starts the processes anew after one of them died.
        options: of ``sbatch``, as they are, such as ``--partition=gpu``.
        setup: lines of shell before the run, such as the activation of an environment.
        python: the interpreter on the machines of the cluster.

    Raises:
        ValueError: a setting does not fit; the message says what would work.

    >>> Job(nodes=2, gpus_per_node=4).processes
    8
    """

    nodes: int = 1
    gpus_per_node: int = 1
    processes_per_node: int | None = None
    cpus_per_process: int | None = None
    time: str | None = None
    name: str = "metamixer"
    grace: int = 120
    restarts: int = 3
    options: Sequence[str] = ()
    setup: Sequence[str] = ()
    python: str = "python"

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("restarts", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least} would work")
        for name in ("processes_per_node", "cpus_per_process"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1 would work")
        if not 30 <= self.grace <= 3600:
            raise ValueError(f"grace={self.grace}: 30 to 3600 seconds would work")
        if self.gpus_per_node and (self.processes_per_node or self.gpus_per_node) > self.gpus_per_node:
            raise ValueError(
                f"processes_per_node={self.processes_per_node}: each process needs a GPU of its own, "
                f"{self.gpus_per_node} or fewer would work"
            )
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ValueError(f"time={self.time!r}: minutes, HH:MM:SS or D-HH:MM:SS would work")
        # The lines of #SBATCH are read by sbatch and not by the shell, which has other rules for quotes.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", self.name):
            raise ValueError(f"name={self.name!r}: letters, digits and . _ + - would work")
        for option in self.options:
            if not option.startswith("-") or not option.isprintable():
                raise ValueError(f"option {option!r} of sbatch: one like --partition=gpu would work")
            if option.partition("=")[0] in _OURS:
                raise ValueError(f"option {option!r} of sbatch: the script sets {option.partition('=')[0]} itself")
        for line in (*self.setup, self.python):
            if not line.strip() or not line.isprintable():
                raise ValueError(f"{line!r} is no line of shell")

    @property
    def per_node(self) -> int:
        """Processes on each machine."""
        return self.processes_per_node or max(self.gpus_per_node, 1)

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.per_node


_OURS = (
    *("--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "-c"),
    *("--time", "-t", "--job-name", "-J", "--requeue", "--no-requeue", "--signal", "--open-mode"),
)


def batch_script(job: Job, words: Sequence[str], out: Path) -> str:
    """The script that trains by ``words`` (of ``metamixer train``) into ``out``, for ``sbatch``.

    It asks for a signal before the time is over, hands it on, and sends the job to the queue again, where it goes on.

    >>> "--signal=B:TERM@120" in batch_script(Job(), ["recipe.yaml"], Path("runs/one"))
    True
    """
    asked = [f"--job-name={job.name}", f"--nodes={job.nodes}", "--ntasks-per-node=1"]
    if job.gpus_per_node:
        asked.append(f"--gpus-per-node={job.gpus_per_node}")
    if job.cpus_per_process:
        asked.append(f"--cpus-per-task={job.cpus_per_process * job.per_node}")
    if job.time:
        asked.append(f"--time={job.time}")
    asked += ["--requeue", "--open-mode=append", f"--signal=B:TERM@{job.grace}", *job.options]
    torchrun = [
        *(job.python, "-m", "torch.distributed.run"),
        *(f"--nnodes={job.nodes}", f"--nproc-per-node={job.per_node}", f"--max-restarts={job.restarts}"),
    ]
    train = ["-m", "metamixer", "train", *words, "--resume", "auto", "--out", str(out), "--quiet"]
    return _SCRIPT.format(
        asked="\n".join(f"#SBATCH {option}" for option in asked),
        setup="".join(f"{line}\n" for line in job.setup),
        threads=f"export OMP_NUM_THREADS={job.cpus_per_process}\n" if job.cpus_per_process else "",
        shutdown=job.grace - _ASIDE,
        nodes=job.nodes,
        cores="" if job.cpus_per_process is None else f" --cpus-per-task={job.cpus_per_process * job.per_node}",
        torchrun=shlex.join(torchrun),
        train=shlex.join(train),
    )


_SCRIPT = """\
#!/bin/bash
# Written by `metamixer slurm`. Submit it with `sbatch FILE`, from the folder that its relative paths begin in.
{asked}

stopped=
stop() {{
    stopped=yes
    # srun would answer SIGTERM by killing its tasks at once, so they are told past it. torchrun tells its processes,
    # and these stop together after the running step, with a checkpoint.
    scancel --signal=TERM "$SLURM_JOB_ID"
}}
trap stop TERM

{setup}{threads}# torchrun waits so many seconds for the checkpoint, of those that --signal asks for (30 by default).
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={shutdown}
# Without it a restart inside of the job meets the port of the processes before it.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# A file of this folder must not stand in for a module of Python's own.
export PYTHONSAFEPATH=1

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1{cores} --kill-on-bad-exit=1 \\
    {torchrun} \\
    --rdzv-backend=c10d --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" \\
    --rdzv-id="$SLURM_JOB_ID-${{SLURM_RESTART_COUNT:-0}}" \\
    {train} &
step=$!
# A signal ends a wait, and the training goes on to its checkpoint.
while kill -0 "$step" 2> /dev/null; do wait "$step"; done
wait "$step"
code=$?

if [ -n "$stopped" ] && [ "$code" -ne 0 ]; then
    # Not where the signal was that of a scancel: SLURM would revive the job.
    case $(scontrol show job --oneliner "$SLURM_JOB_ID") in
        *JobState=RUNNING*) scontrol requeue "$SLURM_JOB_ID" ;;
    esac
fi
exit "$code"
"""
