"""Device, precision and processes of a trainer, and how work is divided.

One process only needs torch. Several processes are started and connected by Lightning Fabric, which is imported only
then.

There are ``peer_groups`` groups of processes, each with an equal part of the peers; in a group every process has an
equal share of every batch. Process ``group * shares + share`` has the peers of ``group`` and the images of ``share``.
One group is data parallelism; with as many groups as processes every process sees all images.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from metamixer.training.settings import HALF, TrainSettings
from metamixer.training.started import CHILD, STRAY, layout, started

T = TypeVar("T")


class ProcessLost(RuntimeError):
    """Another process of the run ended or does not answer; the run can be resumed from its last checkpoint."""


class ProcessGrid:
    """The device and the processes of a trainer.

    Args:
        settings: accelerator, devices, machines, precision, peer groups and timeout.

    Raises:
        ValueError: the processes cannot be divided among the groups, there is no such device, or the settings do not
            fit how this process was started.
    """

    def __init__(self, settings: TrainSettings) -> None:
        devices, nodes = layout(settings)
        world, groups = devices * nodes, settings.peer_groups
        if world % groups:
            raise ValueError(
                f"peer_groups={groups}: {world} process{'es' * (world > 1)} cannot be divided among so many "
                f"groups; accepted are devices={groups}, torchrun with a multiple of that, or peer_groups=1"
            )
        self._timeout = timedelta(minutes=settings.timeout)
        self._fabric: Any = _fabric(settings, devices, nodes, self._timeout) if world > 1 else None
        self.device: torch.device = self._fabric.device if self._fabric else device_of(settings.accelerator)
        """The device of this process."""
        self._half = HALF.get(settings.precision)
        self.groups, self.shares = groups, world // groups
        self.across: Any = None
        """The process group of the processes with the same images, one of each peer group."""
        self._members: Any = None
        self._launched = False
        self._main_share: Any = None
        self._hosts: Any = None

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.groups * self.shares

    @property
    def rank(self) -> int:
        """The global rank of this process."""
        return int(self._fabric.global_rank) if self._fabric else 0

    @property
    def group(self) -> int:
        """The peer group of this process."""
        return self.rank // self.shares

    @property
    def share(self) -> int:
        """The index of the share of images of this process."""
        return self.rank % self.shares

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes files."""
        return self.rank == 0

    def launch(self) -> None:
        """Start the other processes, or connect to them; a second call does nothing."""
        if self._launched:
            return
        self._launched = True
        if self._fabric is None:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            return
        with _quiet_fabric():
            _meet(self.device, self._timeout)
            with _naming_children():
                self._fabric.launch()
        shares, groups = self.shares, self.groups
        for group in range(groups):  # every process has to take part in the creation of every group
            ranks = [group * shares + share for share in range(shares)]
            made = dist.new_group(ranks, timeout=self._timeout)
            if group == self.group:
                self._members = made
        for share in range(shares):
            ranks = [group * shares + share for group in range(groups)]
            made = dist.new_group(ranks, timeout=self._timeout)
            if share == self.share:
                self.across = made
        # Everything except gradients and outputs is exchanged between hosts on any device, so that it does not
        # synchronize with an accelerator.
        self._hosts = dist.new_group(backend="gloo", timeout=self._timeout)
        firsts = [group * shares for group in range(groups)]
        self._main_share = dist.new_group(firsts, backend="gloo", timeout=self._timeout)

    def setup(self, module: nn.Module) -> nn.Module:
        """Move the module to its device and average its gradients over the shares of the images."""
        module.to(self.device)
        if self.shares == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, process_group=self._members)

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast context of the precision."""
        return torch.autocast(self.device.type, self._half) if self._half else nullcontext()

    def backward(self, objective: Tensor) -> None:
        """Compute gradients, averaged over the shares except in :meth:`without_averaging`."""
        objective.backward()  # type: ignore[no-untyped-call]

    def without_averaging(self, module: Any) -> AbstractContextManager[Any]:
        """Accumulate gradients in this process; the next averaged backward pass synchronizes them."""
        found: AbstractContextManager[Any] = nullcontext() if self.shares == 1 else module.no_sync()
        return found

    def align(self, module: nn.Module) -> None:
        """Copy the buffers of the first share to all others: batch norm statistics are those of its images.

        In training every forward pass begins with this; call it before the module is used in between.
        """
        if self.shares > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, self.group * self.shares, group=self._members)

    def align_copies(self, loss: nn.Module) -> None:
        """Copy the loss of the first peer group to all others: copies may differ if devices sum in another order."""
        if self.groups > 1:
            for value in loss.state_dict().values():
                dist.broadcast(value, self.share, group=self.across)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the shares of the images, which is the same in all peer groups."""
        if self.shares == 1:
            return values
        values = values.to(self.device, copy=True)
        dist.all_reduce(values, group=self._members)
        return values

    def largest(self, *numbers: float) -> list[float]:
        """The maximum of each number over all processes, so that all make the same decision."""
        if self.world == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._hosts)
        return values.tolist()

    def everyone(self, value: T) -> list[T]:
        """The objects of all processes, in every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._hosts)
        return found

    def gathered(self, value: T) -> list[T]:
        """The objects of the first process of every peer group, in the first process; an empty list elsewhere."""
        if self.groups == 1:
            return [value] if self.is_first else []
        if self.share:
            return []
        found: list[Any] | None = [None] * self.groups if self.is_first else None
        dist.gather_object(value, found, dst=0, group=self._main_share)
        return found or []

    def from_first(self, value: T) -> T:
        """The object of the first process, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._hosts)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier(group=self._hosts)

    def close(self) -> None:
        """Wait until the threads of the last collective have ended.

        They release Python objects. A process group that is destroyed at that moment would wait for them while it holds
        the interpreter lock, which they need: a deadlock.
        """
        if self._fabric is not None and dist.is_initialized():
            time.sleep(0.3)

    @contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """Convert socket errors of collectives to :class:`ProcessLost`."""
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, dist.DistError) or _of_connection(str(error))):
                raise
            raise ProcessLost(
                f"process {self.rank} of {self.world} lost another one, which ended or did not answer "
                f"({_in_a_line(error)})"
            ) from error


def _of_connection(text: str) -> bool:
    marks = ("Connection closed by peer", "Connection reset", "Timed out", "timed out", "gloo", "NCCL")
    return any(mark in text for mark in marks)


def _in_a_line(error: RuntimeError) -> str:
    """The first sentence of an error, without the source location that gloo adds."""
    return re.sub(r"^\[[^\]]*\] ", "", str(error).splitlines()[0]).partition(". ")[0][:200]


def device_of(accelerator: str) -> torch.device:
    """The device of a run with one process; ValueError if there is no such device."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name in there if there[name]) if accelerator == "auto" else accelerator
    if not there[kind]:
        raise ValueError(f"accelerator={kind}: torch finds no such device; accepted are {_listed(there)}")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


def _listed(there: Mapping[str, bool]) -> str:
    return ", ".join(["auto", *(name for name, is_there in there.items() if is_there)])


def _fabric(settings: TrainSettings, devices: int, nodes: int, timeout: timedelta) -> Any:
    """Fabric for several processes: it starts and connects them, and selects their devices.

    How they are started is determined by :func:`metamixer.training.started.started`, because Fabric assumes srun for
    any job of SLURM.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    class Srun(SLURMEnvironment):  # type: ignore[misc]
        """Processes started by srun, with any of its options."""

        @staticmethod
        def _validate_srun_variables() -> None: ...

        def validate_settings(self, num_devices: int, num_nodes: int) -> None: ...

        def world_size(self) -> int:
            return here.world

    here = started()
    if here.by == "user" and nodes == 1:
        for name in STRAY:
            os.environ.pop(name, None)
    environments = {"torchrun": TorchElasticEnvironment, "srun": Srun}
    environment = environments.get(here.by, LightningEnvironment)()
    with _quiet_fabric():
        return Fabric(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=DDPStrategy(timeout=timeout),
            plugins=[environment],
        )


@contextmanager
def _naming_children() -> Iterator[None]:
    """Let processes that are started inside the block know that a training run started them."""
    first = started().by == "user"
    os.environ |= {CHILD: "1"} if first else {}
    try:
        yield
    finally:
        if first:
            os.environ.pop(CHILD, None)


def _meet(device: torch.device, timeout: timedelta) -> None:
    """After a restart by torchrun, connect the processes with a new prefix in the store.

    torchrun passes the store of the previous processes, with addresses of dead processes that the new ones would wait
    for. On several machines the number of restarts may differ, so torchrun has to open a new store there.
    """
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if started().by != "torchrun" or restarts == "0" or os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") == "1":
        return
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        warnings.warn(
            "restarted on several machines: if the processes wait for each other, start torchrun on each machine with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment",
            stacklevel=2,
        )
        return
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"restart-{restarts}", store),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    """Silence the notices of Fabric about precision and processes."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
