"""One training step: draw a plan, run the cohort, compute the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metamixer.core.plan import Mixer, MixPlan
from metamixer.core.types import Batch, Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import weighing
from metamixer.training.class_weights import smoothed
from metamixer.training.small_loss import SmallLoss


class Step(NamedTuple):
    """The result of a step: the terms to minimise, the outputs and targets, and values ``(P,)`` of the loss for logging
    that are not part of the objective, such as the accuracy of a discriminator."""

    terms: Terms
    outputs: Outputs
    targets: Tensor
    watched: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Compare:
    """Computes the loss from outputs and targets.

    Args:
        smoothing: share of every target that is spread over all classes.
        select: leaves out the samples with the largest losses; None: use all samples.
        weights: class weights ``(C,)`` in cross-entropies; None: equal weights.
    """

    smoothing: float = 0.0
    select: SmallLoss | None = None
    weights: Tensor | None = None

    def __call__(self, loss: nn.Module, outputs: Outputs, targets: Tensor, progress: float | None) -> Terms:
        """Compute the terms."""
        targets = smoothed(targets, self.smoothing)
        if self.select:
            outputs, targets = self.select(outputs, targets, progress)
        with weighing(self.weights):
            terms: Terms = loss(outputs, targets, progress=progress)
        return terms


@dataclass(frozen=True)
class StepInput:
    """The input of a step. Only the networks themselves may draw further random numbers.

    Args:
        batch: images ``(B, C, ...)`` and labels ``(B,)``.
        plan: the mix plan of the batch.
        progress: share of training that is done; None: settings that change with it are at their final values.
    """

    batch: Batch
    plan: MixPlan
    progress: float | None = None

    def within(self, parts: int) -> StepInput:
        """The same with partners restricted to ``parts`` parts of the batch, as :meth:`part` needs it."""
        return StepInput(self.batch, self.plan.within(parts), self.progress)

    def part(self, number: int, parts: int) -> StepInput:
        """The input for the samples ``number``, ``number + parts``, ..."""
        return StepInput(self.batch.part(number, parts), self.plan.part(number, parts), self.progress)


def train_step(
    cohort: nn.Module,
    mixer: Mixer,
    loss: nn.Module,
    batch: Batch | tuple[Tensor, Tensor],
    generator: torch.Generator | None = None,
    progress: float | None = None,
    compare: Compare = Compare(),
) -> Step:
    """Run every peer on a mixed batch and compute the loss; call ``total(step.terms).backward()`` afterwards.

    Args:
        cohort: a :class:`~metamixer.Cohort`, or one wrapped for compilation or several processes.
        mixer: draws the plan from ``generator``.
        loss: maps outputs and soft targets to terms.
        batch: images ``(B, C, ...)``, labels, companions or None; or a pair (images, labels).
        progress: share of training that is done; None: settings that change with it are at their final values.
        compare: label smoothing, class weights, and selection of samples.
    """
    batch = Batch.of(batch)
    plan = mixer(batch.images, batch.labels, companions=batch.companions, generator=generator, progress=progress)
    return follow(cohort, loss, StepInput(batch, plan, progress), compare)


def follow(cohort: nn.Module, loss: nn.Module, given: StepInput, compare: Compare = Compare()) -> Step:
    """:func:`train_step` with a given plan.

    Args:
        cohort, loss, compare: as in :func:`train_step`. Outputs and targets of the step are those of the whole batch.
        given: batch, plan and progress.
    """
    outputs: Outputs = cohort(given.batch.seen, given.plan)
    targets = given.plan.targets(given.batch.labels, num_classes=outputs.logits.shape[-1])
    terms = compare(loss, outputs, targets, given.progress)
    return Step(terms, outputs, targets, Loss.of(loss).watched)
