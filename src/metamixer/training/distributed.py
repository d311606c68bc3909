"""Device, precision and processes: what a trainer asks of Lightning Fabric, and how processes share the work.

There are ``peer_groups`` groups of processes with an equal share of the peers each; inside of a group every process
has an equal share of every batch. Process ``group * shares + share`` has the peers of ``group`` and the images of
``share``. With one group that is data parallelism, with as many groups as processes every process sees all images.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Precision = Literal["32", "bf16"]
_FABRIC_PRECISION: dict[Precision, Any] = {"32": "32-true", "bf16": "bf16-mixed"}
T = TypeVar("T")


class ProcessLost(RuntimeError):
    """Another process of the run ended or does not answer; the run goes on from its last checkpoint."""


class _Strategy(DDPStrategy):  # type: ignore[misc]
    """Gradients are averaged inside of a peer group only."""

    members: Any = None
    alone = False

    def setup_module(self, module: nn.Module) -> Any:
        """Fabric's own, for a part of the processes."""
        if self.alone:
            return module
        return DistributedDataParallel(
            module, device_ids=self._determine_ddp_device_ids(), process_group=self.members, **self._ddp_kwargs
        )


def started_from_outside() -> bool:
    """Whether torchrun started this process, as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_first_process() -> bool:
    """Whether this is the process that speaks and writes; known before anything is launched."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


class Engine:
    """Where a trainer computes, and with how many processes.

    Args:
        accelerator, devices, num_nodes: as in Lightning Fabric. Under torchrun the processes are those that it started.
        precision: ``32`` or ``bf16`` (autocast).
        peer_groups: how many groups of processes the peers are spread over.
        timeout: minutes after which a process that does not answer is given up.

    Raises:
        ValueError: the processes cannot be divided among the groups.
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int = 1,
        num_nodes: int = 1,
        precision: Precision = "32",
        peer_groups: int = 1,
        timeout: float = 10.0,
    ) -> None:
        if started_from_outside():
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            num_nodes = int(os.environ["WORLD_SIZE"]) // devices
        world = devices * num_nodes
        if peer_groups < 1 or world % peer_groups:
            raise ValueError(
                f"peer_groups={peer_groups}: {world} process{'es' * (world > 1)} cannot be divided among so many "
                f"groups; devices={max(1, peer_groups)}, torchrun with a multiple of that, or peer_groups=1 would work"
            )
        self._timeout = timedelta(minutes=timeout)
        self._strategy = _Strategy(timeout=self._timeout) if world > 1 else None
        with _quiet_fabric():
            self.fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                precision=_FABRIC_PRECISION[precision],
                strategy=self._strategy or "auto",
            )
        self.groups, self.shares = peer_groups, world // peer_groups
        self.across: Any = None
        """The processes with the same images, one of each peer group."""
        self._launched = False
        self._main_share: Any = None
        self._hosts: Any = None

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.groups * self.shares

    @property
    def rank(self) -> int:
        """This one's number."""
        return int(self.fabric.global_rank)

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
        return bool(self.fabric.is_global_zero)

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        device: torch.device = self.fabric.device
        return device

    def launch(self) -> None:
        """Start the other processes, or meet them; a second call does nothing."""
        if self._launched:
            return
        self._launched = True
        with _quiet_fabric():
            self.fabric.launch()
        if self._strategy is None:
            return
        shares, groups = self.shares, self.groups
        for group in range(groups):  # every process has to take part in the making of every group
            ranks = [group * shares + share for share in range(shares)]
            made = dist.new_group(ranks, timeout=self._timeout)
            if group == self.group:
                self._strategy.members = made
        for share in range(shares):
            ranks = [group * shares + share for group in range(groups)]
            made = dist.new_group(ranks, timeout=self._timeout)
            if share == self.share:
                self.across = made
        # What processes tell each other apart from gradients and outputs goes from host to host, whatever the device:
        # nobody waits for an accelerator because of it.
        self._hosts = dist.new_group(backend="gloo", timeout=self._timeout)
        firsts = [group * shares for group in range(groups)]
        self._main_share = dist.new_group(firsts, backend="gloo", timeout=self._timeout)
        self._strategy.alone = shares == 1

    def setup(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Module and optimizer, ready for this device, precision and these processes."""
        return cast(tuple[Any, Any], self.fabric.setup(module, optimizer))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision, for computing outside of the module that was set up."""
        return cast(AbstractContextManager[Any], self.fabric.autocast())

    def backward(self, objective: Tensor) -> None:
        """Gradients, averaged over the shares unless :meth:`without_averaging`."""
        self.fabric.backward(objective)

    def without_averaging(self, module: Any) -> AbstractContextManager[Any]:
        """Gradients stay in this process, until one that is averaged adds them up."""
        if self.shares == 1:
            return nullcontext()
        return cast(AbstractContextManager[Any], self.fabric.no_backward_sync(module))

    def align(self, module: nn.Module) -> None:
        """Give all shares the buffers of the first: batch norm's statistics are those of the images that it saw.

        While it trains each forward pass begins with this; whoever looks at the module in between has to ask for it.
        """
        if self.shares > 1 and self._strategy is not None:
            for buffer in module.buffers():
                dist.broadcast(buffer, self.group * self.shares, group=self._strategy.members)

    def align_copies(self, loss: nn.Module) -> None:
        """Give all peer groups the loss of the first: copies are equal but for devices that sum in another order."""
        if self.groups > 1:
            for value in loss.state_dict().values():
                dist.broadcast(value, self.share, group=self.across)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over the shares of the images; the peer groups have the same."""
        if self.shares == 1 or self._strategy is None:
            return values
        values = values.to(self.device, copy=True)
        dist.all_reduce(values, group=self._strategy.members)
        return values

    def largest(self, *numbers: float) -> list[float]:
        """Of each number the largest over all processes, so that all decide alike."""
        if self.world == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._hosts)
        return values.tolist()

    def everyone(self, value: T) -> list[T]:
        """What each process has, everywhere."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._hosts)
        return found

    def gathered(self, value: T) -> list[T]:
        """What the first processes of the peer groups have, in the first process; elsewhere nothing."""
        if self.groups == 1:
            return [value] if self.is_first else []
        if self.share:
            return []
        found: list[Any] | None = [None] * self.groups if self.is_first else None
        dist.gather_object(value, found, dst=0, group=self._main_share)
        return found or []

    def told(self, value: T) -> T:
        """What the first process has, everywhere."""
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
        if self._strategy is not None and dist.is_initialized():
            time.sleep(0.3)

    @contextmanager
    def naming_lost_processes(self) -> Iterator[None]:
        """Errors of a collective, which speak of sockets, as :class:`ProcessLost`."""
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
    """Its first sentence, without the place in the source that gloo begins with."""
    return re.sub(r"^\[[^\]]*\] ", "", str(error).splitlines()[0]).partition(". ")[0][:200]


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
