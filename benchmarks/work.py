"""The steps that are timed: networks that train side by side, and cohorts that train together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.settings import Settings, Shape
from metamixer.cohort.cohort import Cohort
from metamixer.core.plan import Mixer
from metamixer.core.seeding import generator
from metamixer.core.types import Batch, total
from metamixer.losses.base import Loss
from metamixer.training.optimizer import Optim
from metamixer.training.train_step import train_step

# Random labels are never learnt; a small rate keeps the weights sane over hundreds of steps.
OPTIM = Optim(lr=1e-3, warmup=0.0, clip=None)


def batch_of(settings: Settings, shape: Shape, *, companions: bool = True, seed: int = 0) -> Batch:
    """Noise with random labels, in memory as the loader leaves it."""
    draw = torch.Generator().manual_seed(seed)

    def images() -> torch.Tensor:
        noise = torch.randn(shape.batch, 3, shape.side, shape.side, generator=draw)
        return noise.to(settings.where, memory_format=torch.channels_last)

    labels = torch.randint(0, settings.classes, (shape.batch,), generator=draw).to(settings.where)
    return Batch(images(), labels, images() if companions else None)


def plain_steps(
    networks: Sequence[nn.Module], batch: Batch, settings: Settings, precision: str
) -> Callable[[], object]:
    """One step of each network by itself: forward, cross-entropy, backward, and a fused SGD of its own."""
    optimizers = [_sgd(network.parameters()) for network in networks]

    def step() -> None:
        for network, optimizer in zip(networks, optimizers, strict=True):
            with settings.autocast(precision):
                loss = F.cross_entropy(network(batch.images), batch.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return step


def _sgd(weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        weights,
        lr=OPTIM.peak,
        momentum=OPTIM.momentum,
        nesterov=OPTIM.nesterov,
        weight_decay=OPTIM.weight_decay,
        fused=True,
    )


def joint_step(
    cohort: Cohort, mixer: Mixer, loss: nn.Module, batch: Batch, settings: Settings, precision: str
) -> Callable[[int], object]:
    """One step of a cohort, its draws seeded by the argument: the step of the trainer without the trainer."""
    optimizer = OPTIM.build(cohort, loss)

    def step(seed: int) -> None:
        with settings.autocast(precision):
            found = train_step(cohort, mixer, loss, batch, generator(0, "bench", seed))
        optimizer.zero_grad(set_to_none=True)
        total(found.terms).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        Loss.of(loss).after_step(cohort)

    return step


def set_up(loss: nn.Module, cohort: Cohort, batch: Batch) -> nn.Module:
    """The loss with its trainable parts built, as the trainer does it before the first step."""
    cohort.eval()
    with torch.no_grad():
        outputs = cohort(batch.images[:2])
    cohort.train()
    Loss.of(loss).setup(outputs)
    return loss.to(batch.images.device)


def repeated(step: Callable[[int], object], times: int) -> Callable[[], None]:
    """The step with the seeds 0 to ``times - 1``, the same in every round."""

    def work() -> None:
        for seed in range(times):
            step(seed)

    return work
