"""What a step costs when its peers are spread over processes: measured here, and predicted for a cluster.

    OMP_NUM_THREADS=1 python scripts/scaling.py measure --rounds 15
    python scripts/scaling.py predict
    python scripts/scaling.py full-length

`measure` starts all layouts at once and lets them run in turn, a few steps each, so that whatever else the machine does
meets all of them alike. `predict` is arithmetic on stated assumptions and nothing else. docs/scaling.md has both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import socket
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS, CLASSES = 2, 100
MIB = 2**20


@dataclass(frozen=True)
class Layout:
    """How two peers are trained: so many processes, in so many peer groups, with so many threads each."""

    name: str
    processes: int = 1
    groups: int = 1
    threads: int = 1
    parallel: str = "none"

    @property
    def shares(self) -> int:
        return self.processes // self.groups


LAYOUTS = (
    Layout("1 process, 1 thread"),
    Layout("1 process, 2 threads", threads=2),
    Layout("1 process, peers in threads", threads=2, parallel="threads"),
    Layout("2 processes, half of the images each", processes=2),
    Layout("2 processes, one peer each", processes=2, groups=2),
)


# --- measured -------------------------------------------------------------------------------------------------------


class Turns:
    """A callback of the first process, which holds back the others: so many steps, a report, and waiting for more."""

    def __init__(self, pipe: Any, cohort: Any, before: float) -> None:
        self.pipe, self.cohort, self.before = pipe, cohort, before
        self.left = 0
        self.seconds: list[float] = []
        self.waited = 0.0
        self.begin: tuple[int, int] | None = None

    def on_step(self, record: Any) -> None:
        if self.left:
            if self.begin is None:  # the first step of a turn comes from waiting, and does not count
                self.begin = self._bytes()
                return
            self.seconds.append(record.seconds)
            self.waited += record.waited
            self.left -= 1
            if self.left:
                return
            came = [end - begin for begin, end in zip(self.begin, self._bytes(), strict=True)]
            self.pipe.send((self.seconds, self.waited, *came, peak() - self.before))
        self.left, self.seconds, self.waited, self.begin = self.pipe.recv(), [], 0.0, None

    def _bytes(self) -> tuple[int, int]:
        """What came from other peers by our count, and all that came over the loopback by the system's."""
        exchange = self.cohort._exchange
        line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
        return 0 if exchange is None else exchange.received, int(line.split(":")[1].split()[0])

    def on_start(self, start: Any) -> None: ...
    def on_epoch(self, record: Any) -> None: ...
    def on_end(self) -> None: ...


def peak() -> float:
    """The most memory that this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def follow(layout: Layout, rank: int, port: int, network: str, batch: int, loss: str, pipe: Any) -> None:
    """One process of a layout: a training without end."""
    if layout.processes > 1:
        os.environ.update(
            TORCHELASTIC_RUN_ID="scaling", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(layout.processes),
            LOCAL_WORLD_SIZE=str(layout.processes), GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
    import torch

    from metamixer import Cohort, NoMix, Optim, Trainer
    from metamixer.config.registry import LOSSES
    from metamixer.data import Augment, TensorImages, TrainLoader
    from metamixer.models import build

    torch.set_num_threads(layout.threads)
    torch.manual_seed(0)
    count = 20 * batch
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    images = TensorImages(pixels, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))))
    loader = TrainLoader(images, Augment(pad=4), [0.5] * 3, [0.25] * 3, batch, 0)
    before = peak()
    networks = [build(network, num_classes=CLASSES, in_channels=3) for _ in range(PEERS)]
    cohort = Cohort(networks, parallel=layout.parallel)  # type: ignore[arg-type]
    trainer = Trainer(
        cohort, NoMix(), LOSSES[loss](), optim=Optim(lr=1e-3), epochs=10**6, accelerator="cpu",
        peer_groups=layout.groups, callbacks=[Turns(pipe, cohort, before)], timeout=60,
    )  # fmt: skip
    trainer.fit(loader)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def measure(network: str, batch: int, loss: str, rounds: int, steps: int) -> None:
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for layout in LAYOUTS:
        here, there = context.Pipe()
        port = free_port()
        for rank in range(layout.processes):
            words = (layout, rank, port, network, batch, loss, there if rank == 0 else None)
            processes.append(context.Process(target=follow, args=words, daemon=True))
            processes[-1].start()
        pipes[layout] = here

    def turn(layout: Layout, count: int) -> Any:
        pipes[layout].send(count)
        while not pipes[layout].poll(1):
            if any(process.exitcode is not None for process in processes):
                raise SystemExit("a process ended; its message is above")
        try:
            return pipes[layout].recv()
        except (EOFError, ConnectionError):
            raise SystemExit("a process ended; its message is above") from None

    seconds: dict[Layout, list[float]] = {layout: [] for layout in LAYOUTS}
    waited, peers, loopback, memory = {}, {}, {layout: float("inf") for layout in LAYOUTS}, {}
    try:
        for layout in LAYOUTS:
            turn(layout, 1)
        draw = random.Random(0)
        for _ in range(rounds):
            for layout in draw.sample(LAYOUTS, len(LAYOUTS)):
                times, wait, came, all_came, memory[layout] = turn(layout, steps)
                seconds[layout].append(statistics.median(times))
                waited[layout] = wait / sum(times)
                peers[layout] = came / steps
                loopback[layout] = min(loopback[layout], all_came / steps)
    finally:
        for process in processes:
            process.kill()
    from metamixer.models import build

    weights = sum(value.numel() for value in build(network, num_classes=CLASSES, in_channels=3).parameters())
    print(
        f"{PEERS} {network} ({weights:,} weights each), {loss}, batch {batch} of 3x32x32, {CLASSES} classes, fp32; "
        f"median of {rounds} rounds of {steps} steps, quartiles of the rounds in brackets; load "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    print("| layout | ms a step | of 1 process, 1 thread | waiting for images | bytes from peers: counted, formula "
          "| bytes over the loopback: least seen, formula | peak memory of one process |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    first = seconds[LAYOUTS[0]]
    for layout in LAYOUTS:
        own = seconds[layout]
        low, middle, high = quartiles(own)
        ratio = quartiles([mine / other for mine, other in zip(own, first, strict=True)])
        outputs = outputs_received(layout.groups, PEERS // layout.groups, batch // layout.shares, CLASSES)
        gradients = gradients_received(layout.shares, PEERS // layout.groups * weights)
        both = layout.processes * (outputs + gradients)
        print(
            f"| {layout.name} | {middle * 1e3:.0f} [{low * 1e3:.0f}, {high * 1e3:.0f}] | {ratio[1]:.2f} "
            f"[{ratio[0]:.2f}, {ratio[2]:.2f}] | {waited[layout]:.1%} | {peers[layout]:,.0f}, {outputs:,.0f} "
            f"| {loopback[layout]:,.0f}, {both:,.0f} | {memory[layout]:.0f} MiB |"
        )


def quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


# --- the model ------------------------------------------------------------------------------------------------------


def outputs_received(groups: int, peers_here: int, images: int, classes: int, size: int = 4) -> float:
    """Bytes of logits that one process receives in one forward pass; features count like more classes."""
    return (groups - 1) * peers_here * images * classes * size


def gradients_received(shares: int, weights: float, size: int = 4) -> float:
    """Bytes that one process receives in a ring all-reduce of so many gradients."""
    return 2 * (shares - 1) / shares * weights * size


@dataclass(frozen=True)
class Cluster:
    """Assumptions, none of them measured.

    Args:
        rate: FLOP/s that a device sustains in bf16 on this network.
        inside: bytes/s that a device receives from another one of its machine in a collective.
        between: the same where the collective spans machines.
        per_machine: devices of a machine.
        latency: seconds of one collective.
        decode: images a second that one processor core decodes, crops and augments.
    """

    rate: float = 60e12
    inside: float = 100e9
    between: float = 20e9
    per_machine: int = 8
    latency: float = 50e-6
    decode: float = 490.0


@dataclass(frozen=True)
class Work:
    """ResNet-50 on ImageNet: 4.1 G multiply-adds, so 8.2 GFLOP, forward; three times that with the backward pass."""

    forward: float = 8.2e9
    weights: float = 25.6e6
    classes: int = 1000
    activations: float = 42 * MIB  # that autograd keeps of an image in bf16
    images: int = 1_281_167


def step(work: Work, cluster: Cluster, peers: int, devices: int, groups: int, batch: int) -> dict[str, float]:
    """What one device does in a step of ``batch`` images over all devices."""
    shares, here = devices // groups, peers // groups
    images = batch / shares
    compute = here * images * 3 * work.forward / cluster.rate
    gradients = gradients_received(shares, here * work.weights)
    outputs = outputs_received(groups, here, int(images), work.classes)
    # The shares of a group have neighbouring ranks; the processes with the same images do not.
    speed = cluster.inside if shares <= cluster.per_machine else cluster.between
    across = cluster.inside if devices <= cluster.per_machine else cluster.between
    reducing = gradients / speed + (cluster.latency if shares > 1 else 0)
    gathering = outputs / across + (cluster.latency if groups > 1 else 0)
    # DDP reduces while the backward pass, two thirds of the computing, still runs. Nothing hides the outputs' way.
    seconds = compute + max(0.0, reducing - 2 / 3 * compute) + gathering
    return {
        "images": images,
        "compute": compute,
        "gradients": gradients,
        "outputs": outputs,
        "reducing": reducing,
        "gathering": gathering,
        "seconds": seconds,
        "epoch": work.images / batch * seconds,
        # Weights, gradients and momentum in fp32, and a copy of the gradients in DDP's buckets.
        "weights": here * work.weights * 4 * (4 if shares > 1 else 3),
        "activations": here * images * work.activations,
        "decoded": images / seconds,
        "cores": images / seconds / cluster.decode,
    }


def layouts(peers: int, devices: int) -> Iterator[int]:
    for groups in range(1, peers + 1):
        if peers % groups == 0 and devices % groups == 0:
            yield groups


def predict(images_per_device: int) -> None:
    work, cluster = Work(), Cluster()
    print(f"{work}\n{cluster}\nbatch: {images_per_device} images for each device\n")
    print("| peers | devices | peer groups | compute | gradients received, time | outputs received, time | step "
          "| epoch | weights, activations of a device | decoded for a device |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for peers in (2, 8):
        for devices in (8, 64):
            for groups in layouts(peers, devices):
                found = step(work, cluster, peers, devices, groups, images_per_device * devices)
                print(
                    f"| {peers} | {devices} | {groups} | {found['compute'] * 1e3:.0f} ms "
                    f"| {found['gradients'] / 1e6:.0f} MB, {found['reducing'] * 1e3:.1f} ms "
                    f"| {found['outputs'] / 1e6:.2f} MB, {found['gathering'] * 1e3:.2f} ms "
                    f"| {found['seconds'] * 1e3:.0f} ms | {found['epoch'] / 60:.1f} min "
                    f"| {found['weights'] / 1e9:.1f} + {found['activations'] / 1e9:.1f} GB "
                    f"| {found['decoded']:,.0f} a second ({found['cores']:.1f} cores) |"
                )


# --- studies/main at full length ------------------------------------------------------------------------------------

TRAINED = {"resnet8, 16 px": 18.53e6, "2 x resnet20": 2 * 244.0e6, "2 x resnet32": 2 * 413.9e6}
"""FLOP of an image, forward and backward, as benchmarks.floor counts them."""

SUSTAINED = (11.1e12, 3e12)
"""FLOP/s of a GPU: 50,000 images, 200 epochs of ResNet-18 (3 x 1.11 GFLOP an image) in about 50 min on a V100S, as the
README of github.com/afzalxo/ResNet-Simplified-Pytorch says; and a quarter of it, where small kernels leave it idle."""


def full_length(gpus: int = 8, rows: int = 8, sets: int = 2, seeds: int = 3, beside: float = 60.0) -> None:
    """What the rows of studies/main cost on CIFAR-10 and CIFAR-100, 200 epochs of 45,000 images."""
    runs = rows * sets * seeds
    for sustained in SUSTAINED:
        hours = 0.0
        for name in ("2 x resnet20", "2 x resnet32"):
            # 5,000 validation images an epoch and the test set: forward only, a third of the operations.
            flop = TRAINED[name] * (45_000 * 200 + (5_000 * 200 + 10_000) / 3)
            seconds = flop / sustained + beside
            hours += runs * seconds / 3600
            print(f"{sustained / 1e12:.1f} TFLOP/s, {name}: {flop:.3g} FLOP, {seconds / 60:.1f} min a run, {runs} runs")
        rounds = -(-2 * runs // gpus) / (2 * runs / gpus)  # the last round leaves GPUs idle
        print(f"  {hours:.0f} GPU hours, {hours / gpus * rounds:.1f} hours on {gpus} GPUs")
    # The same arithmetic for a run that was measured: one core of 233 GFLOP/s for two, 1.8 times the floor.
    known = 2 * TRAINED["resnet8, 16 px"] * 500 * 600
    print(f"check, studies/explore on one core: {known / (233e9 / 2) * 1.8:.0f} s; measured 181 and 195 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_subparsers(dest="what", required=True)
    measuring = what.add_parser("measure", help="on this machine")
    measuring.add_argument("--network", default="resnet20")
    measuring.add_argument("--batch", type=int, default=128)
    measuring.add_argument("--loss", default="dml")
    measuring.add_argument("--rounds", type=int, default=15)
    measuring.add_argument("--steps", type=int, default=3)
    predicting = what.add_parser("predict", help="ResNet-50 on ImageNet, on 8 and 64 GPUs")
    predicting.add_argument("--images", type=int, default=64, help="for each device")
    what.add_parser("full-length", help="studies/main at full length, on 8 GPUs")
    given = parser.parse_args()
    if given.what == "full-length":
        full_length()
    elif given.what == "predict":
        predict(given.images)
    else:
        measure(given.network, given.batch, given.loss, given.rounds, given.steps)


if __name__ == "__main__":
    main()
