"""The least time that a step can take on this machine, by arithmetic, and how near the steps come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import Figure, Measured, Section
from benchmarks.settings import Settings, spelled
from benchmarks.timing import Case, fixed, interleave
from benchmarks.work import batch_of, joint_step, plain_steps, repeated
from metamixer.cohort.cohort import Cohort
from metamixer.losses import DML
from metamixer.mixers import NoMix

_DTYPES = {"32": torch.float32, "bf16": torch.bfloat16}
_PLAIN, _JOINT = "1 plain step", "DML, 2 peers"


@dataclass(frozen=True)
class Work:
    """What one network's step has to do.

    Args:
        flop: of forward and backward, a multiplication and an addition as two.
        values: of activations that convolutions and linear layers have to read and write.
        weights: parameters.
    """

    flop: int
    values: int
    weights: int

    def traffic(self, precision: str) -> float:
        """Bytes at least: activations as they are computed, weights and their momentum in fp32.

        A weight is read forward and backward, its gradient written and read, its momentum read and written, and it
        is itself read and written once more.
        """
        return self.values * (2 if precision == "bf16" else 4) + self.weights * 4 * 8


def measure(settings: Settings) -> list[Section]:
    """The machine's peaks, and for each network and precision the floor of a step."""
    machine = peaks(settings)
    found = {each.name: each.best for each in machine.measured}
    return [machine, *(near(settings, name, precision, found) for name in settings.networks
                       for precision in settings.precisions)]  # fmt: skip


def peaks(settings: Settings) -> Section:
    """Products of large matrices, the best of a few convolutions, a copy."""
    side = 256 if settings.quick else 2048
    device, cases, scale = settings.where, [], {}
    numbers = 2**20 if settings.quick else 2**26
    source = torch.zeros(numbers, device=device)
    target = torch.empty_like(source)
    cases.append(Case("copy", fixed(lambda: target.copy_(source))))
    scale["copy"] = 2 * 4 * numbers
    for precision in settings.precisions:
        dtype, title = _DTYPES[precision], spelled(precision)
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        cases.append(Case(f"matmul {title}", fixed(_product(matrix))))
        scale[f"matmul {title}"] = 2 * side**3
        for channels, pixels in ((16, 8),) if settings.quick else ((64, 32), (128, 16), (256, 16)):
            name = f"conv {channels}x{pixels}x{pixels} {title}"
            images = torch.randn(64, channels, pixels, pixels, device=device, dtype=dtype)
            layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
            work = _convolution(
                layer.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
                images.to(memory_format=torch.channels_last),
            )
            cases.append(Case(name, fixed(work)))
            scale[name] = 2 * 9 * channels**2 * 64 * pixels**2
    measured, missing = interleave(cases, max(3, settings.rounds), device)
    rates = tuple(
        Measured(
            each.name,
            tuple(scale[each.name] / sample / 1e9 for sample in each.samples),
            "GB/s" if each.name == "copy" else "GFLOP/s",
            higher=True,
        )
        for each in measured
    )
    return Section("peaks of this machine", rates, (), missing, ("Forward only; channels last.",))


def _product(matrix: Tensor) -> Callable[[], object]:
    return lambda: matrix @ matrix


def _convolution(layer: nn.Module, images: Tensor) -> Callable[[], object]:
    @torch.no_grad()
    def work() -> object:
        return layer(images)

    return work


def near(settings: Settings, name: str, precision: str, peaks: dict[str, float]) -> Section:
    """A plain step and a joint one against their floor."""
    shape, title = settings.shape(name), spelled(precision)
    batch = batch_of(settings, shape, companions=False)
    work = count(settings.network(name), batch.images, batch.labels)
    cohort = Cohort([settings.network(name) for _ in range(2)])
    plain = plain_steps([settings.network(name)], batch, settings, precision)
    joint = joint_step(cohort, NoMix(), DML(), batch, settings, precision)
    cases = [
        Case(_PLAIN, fixed(plain), items=shape.batch),
        Case(_JOINT, fixed(repeated(joint, 1)), items=shape.batch),
    ]
    measured, missing = interleave(cases, settings.rounds, settings.where)
    speed = max(value for key, value in peaks.items() if key.endswith(f" {title}")) * 1e9
    arithmetic, memory = work.flop / speed, work.traffic(precision) / (peaks["copy"] * 1e9)
    floor = max(arithmetic, memory)
    figures = tuple(
        Figure(f"{each.name} / floor", tuple(s / (floor * n) for s in each.samples), each.best / (floor * n))
        for each, n in ((each, 1 if each.name == _PLAIN else 2) for each in measured)
    )
    mebibytes = work.traffic(precision) / 2**20
    note = (
        f"{work.flop / 1e9:.2f} GFLOP and at least {mebibytes:.0f} MiB for a step of one network: "
        f"{1000 * arithmetic:.1f} ms of arithmetic at the best rate above, {1000 * memory:.1f} ms of memory; the "
        "larger is the floor. It counts convolutions and linear layers alone, as if all else were free."
    )
    return Section(f"floor: {name}, {title}", measured, figures, missing, (note,))


def count(network: nn.Module, images: Tensor, labels: Tensor) -> Work:
    """The operations and values of a forward and backward pass."""
    values = 0

    def see(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        nonlocal values
        # Forward reads the input and writes the output; backward reads the output's gradient and the input, and
        # writes the input's gradient.
        values += 3 * args[0].numel() + 2 * output.numel()

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(see) for layer in layers]
    try:
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
    return Work(counter.get_total_flops(), values, sum(weight.numel() for weight in network.parameters()))
