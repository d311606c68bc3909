"""Detect the launcher of this process: torchrun, srun, the first process of a run, or the user.

The launcher is recognised by environment variables that only it sets. Generic variables such as ``RANK``, which may be
left over from anything, are only used together with these.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from metamixer.training.settings import TrainSettings

CHILD = "METAMIXER_CHILD"
"""Set by the first process of a run for those that it starts."""

STRAY = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which launchers connect processes; meaningless if no launcher started this one."""

_OTHERS = {"OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec", "JSM_NAMESPACE_SIZE": "jsrun"}


@dataclass(frozen=True)
class Started:
    """The launcher of this process, its rank, and the number of processes in total and on this machine."""

    by: Literal["user", "training", "torchrun", "srun"] = "user"
    rank: int = 0
    world: int = 1
    local: int = 1

    @property
    def from_outside(self) -> bool:
        """Whether the other processes of the run are started by a launcher."""
        return self.by in ("torchrun", "srun") and self.world > 1


def started() -> Started:
    """How this process was started."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Started("torchrun", _number("RANK", 0), _number("WORLD_SIZE", 1), _number("LOCAL_WORLD_SIZE", 1))
    if CHILD in os.environ:
        return Started("training", _number("LOCAL_RANK", 0))
    # A batch script that does not use srun is one process, whatever number of tasks was requested.
    tasks, rank = _number("SLURM_STEP_NUM_TASKS", 1), _number("SLURM_PROCID", 0)
    if rank > 0:
        tasks = max(tasks, _number("SLURM_NTASKS", 1), rank + 1)
    if tasks > 1:
        nodes = _number("SLURM_STEP_NUM_NODES", _number("SLURM_NNODES", 1))
        return Started("srun", rank, tasks, tasks // max(1, nodes))
    return Started()


def layout(settings: TrainSettings) -> tuple[int, int]:
    """The number of processes per machine, and the number of machines.

    Raises:
        ValueError: the settings do not fit how this process was started; the message says how to start it.
    """
    here, devices, nodes = started(), settings.devices, settings.num_nodes
    if here.by == "torchrun":
        return here.local, here.world // here.local
    if here.by == "srun" and here.world != devices * nodes:
        raise ValueError(
            f"devices={devices} and num_nodes={nodes}: srun started {here.world} processes; accepted are "
            f"srun --nodes={nodes} --ntasks-per-node={devices}, or devices={here.local} with "
            f"num_nodes={here.world // here.local}"
        )
    for name, program in _OTHERS.items():
        if here.by == "user" and (count := _number(name, 1)) > 1:
            raise ValueError(
                f"devices={devices}: {program} started {count} processes that cannot find each other; accepted are "
                "torchrun, srun, or one process, which starts the others of its machine itself"
            )
    if here.by == "user" and nodes > 1:
        raise ValueError(
            f"num_nodes={nodes}: no launcher has started processes on other machines; accepted are "
            f"torchrun --nnodes={nodes} --nproc-per-node={devices} on each machine, "
            f"srun --nodes={nodes} --ntasks-per-node={devices}, or num_nodes=1"
        )
    return devices, nodes


def is_first_process() -> bool:
    """Whether this is the process that prints and writes files; known before other processes are launched."""
    return started().rank == 0


def started_from_outside() -> bool:
    """Whether a launcher started this process, as one of several."""
    return started().from_outside


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise
