"""Device, precision and processes of a trainer, and how work is shared.

One process needs torch alone. For several, Lightning Fabric starts them and makes them meet; it is imported only then.

There are ``peer_groups`` groups of processes with an equal share of the peers each; inside of a group every process
has an equal share of every batch. Process ``group * shares + share`` has the peers of ``group`` and the images of
``share``. With one group that is data parallelism, with as many groups as processes every process sees all images.
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
    """Where a trainer computes, and with how many processes.

    Args:
        settings: accelerator, devices, machines, precision, peer groups and timeout.

    Raises:
        ValueError: the processes cannot be divided among the groups, there is no such device, or the settings do not
            fit the way in which this process was started.
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
        """Where this process computes."""
        self._half = HALF.get(settings.precision)
        self.groups, self.shares = groups, world // groups
        self.across: Any = None
        """The processes with the same images, one of each peer group."""
        self._members: Any = None
        self._launched = False
        self._main_share: Any = None
        self._hosts: Any = None

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.groups * self.shares

    @property
    def rank(self) -> int:
        """The number of this process."""
        return int(self._fabric.global_rank) if self._fabric else 0

    @property
    def group(self) -> int:
        """Its peer group."""
        return self.rank // self.shares

    @property
    def share(self) -> int:
        """Its share of the images."""
        return self.rank % self.shares

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes."""
        return self.rank == 0

    def launch(self) -> None:
        """Start the other processes, or meet them; a second call does nothing."""
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
        for group in range(groups):  # every process has to take part in the making of every group
            ranks = [group * shares + share for share in range(shares)]
            made = dist.new_group(ranks, timeout=self._timeout)
            if group == self.group:
                self._members = made
        for share in range(shares):
            ranks = [group * shares + share for group in range(groups)]
            made = dist.new_group(ranks, timeout=self._timeout)
            if share == self.share:
                self.across = made
        # What processes exchange beside gradients and outputs goes from host to host, whatever the device:
        # nobody waits for an accelerator because of it.
        self._hosts = dist.new_group(backend="gloo", timeout=self._timeout)
        firsts = [group * shares for group in range(groups)]
        self._main_share = dist.new_group(firsts, backend="gloo", timeout=self._timeout)

    def setup(self, module: nn.Module) -> nn.Module:
        """The module on its device, with gradients that are averaged over the shares of the images."""
        module.to(self.device)
        if self.shares == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, process_group=self._members)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision, as a context of all that is computed."""
        return torch.autocast(self.device.type, self._half) if self._half else nullcontext()

    def backward(self, objective: Tensor) -> None:
        """Gradients, averaged over the shares unless :meth:`without_averaging`."""
        objective.backward()  # type: ignore[no-untyped-call]

    def without_averaging(self, module: Any) -> AbstractContextManager[Any]:
        """Keep gradients in this process; the next averaged backward pass adds them up."""
        found: AbstractContextManager[Any] = nullcontext() if self.shares == 1 else module.no_sync()
        return found

    def align(self, module: nn.Module) -> None:
        """Give all shares the buffers of the first: batch norm's statistics are those of the images that it saw.

        While it trains each forward pass begins with this; whoever looks at the module in between has to ask for it.
        """
        if self.shares > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, self.group * self.shares, group=self._members)

    def align_copies(self, loss: nn.Module) -> None:
        """Give all peer groups the loss of the first: copies are equal but for devices that sum in another order."""
        if self.groups > 1:
            for value in loss.state_dict().values():
                dist.broadcast(value, self.share, group=self.across)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the shares of the images; the peer groups have the same."""
        if self.shares == 1:
            return values
        values = values.to(self.device, copy=True)
        dist.all_reduce(values, group=self._members)
        return values

    def largest(self, *numbers: float) -> list[float]:
        """The largest of each number over all processes, so that all take the same decision."""
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
        """The objects of the first processes of the peer groups, in the first process; elsewhere none."""
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
        """Let the threads of the last collective end.

        They let go of Python objects. A process group that ends at that moment waits for them with the interpreter's
        lock in its hand, and they for the lock.
        """
        if self._fabric is not None and dist.is_initialized():
            time.sleep(0.3)

    @contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """Turn socket errors of collectives into :class:`ProcessLost`."""
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
    """The first sentence of an error, without gloo's source location."""
    return re.sub(r"^\[[^\]]*\] ", "", str(error).splitlines()[0]).partition(". ")[0][:200]


def device_of(accelerator: str) -> torch.device:
    """The device of a run of one process; ValueError if there is none of that kind."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = next(name for name in there if there[name]) if accelerator == "auto" else accelerator
    if not there[kind]:
        raise ValueError(f"accelerator={kind}: torch finds no such device; accepted are {_listed(there)}")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


def _listed(there: Mapping[str, bool]) -> str:
    return ", ".join(["auto", *(name for name, is_there in there.items() if is_there)])


def _fabric(settings: TrainSettings, devices: int, nodes: int, timeout: timedelta) -> Any:
    """Fabric for several processes: it is asked to start them and to make them meet, and for their devices.

    Who starts them is settled by :func:`metamixer.training.started.started`: Fabric would take any job of SLURM for one
    that srun started.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    class Srun(SLURMEnvironment):  # type: ignore[misc]
        """Processes that srun started, however it was asked for them."""

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
    """Let processes that start inside of the block know that a training started them."""
    first = started().by == "user"
    os.environ |= {CHILD: "1"} if first else {}
    try:
        yield
    finally:
        if first:
            os.environ.pop(CHILD, None)


def _meet(device: torch.device, timeout: timedelta) -> None:
    """Where torchrun has started a run's processes again, let them meet in a place of their own.

    It gives them the store of those before, in which they would find the addresses of the dead and wait for them. On
    several machines the number of restarts is not the same everywhere: there torchrun has to open a new store.
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
    """Without its notices about precision and processes."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
