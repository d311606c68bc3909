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
    """What a step computed: the terms to minimise, what they were computed from, and what the loss lets one watch
    besides, such as the accuracy of a discriminator: numbers ``(P,)`` that are no part of the objective."""

    terms: Terms
    outputs: Outputs
    targets: Tensor
    watched: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Compare:
    """How outputs and targets come to the loss.

    Args:
        smoothing: the share of every target that is spread over all classes.
        select: leaves the samples with the largest loss out of the terms; None: all count.
        weights: of the classes ``(C,)`` in cross-entropies; None: all count alike.
    """

    smoothing: float = 0.0
    select: SmallLoss | None = None
    weights: Tensor | None = None

    def __call__(self, loss: nn.Module, outputs: Outputs, targets: Tensor, progress: float | None) -> Terms:
        """The terms."""
        targets = smoothed(targets, self.smoothing)
        if self.select:
            outputs, targets = self.select(outputs, targets, progress)
        with weighing(self.weights):
            terms: Terms = loss(outputs, targets, progress=progress)
        return terms


@dataclass(frozen=True)
class StepInput:
    """What a step computes from, once its plan is drawn: nothing random is left but what the networks draw themselves.

    Args:
        batch: images ``(B, C, ...)``, labels ``(B,)``.
        plan: what happens to that batch.
        progress: the share of training that is done; None: settings that change with it are at full strength.
    """

    batch: Batch
    plan: MixPlan
    progress: float | None = None

    def within(self, parts: int) -> StepInput:
        """The same, with partners that stay inside of ``parts`` parts of the batch, as :meth:`part` needs it."""
        return StepInput(self.batch, self.plan.within(parts), self.progress)

    def part(self, number: int, parts: int) -> StepInput:
        """The samples ``number``, ``number + parts``, ... and what the plan does to them."""
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
    """One forward pass of every peer over one mixed batch, and the loss; ``total(step.terms).backward()`` follows.

    Args:
        cohort: a :class:`~metamixer.Cohort`, or one wrapped for compilation or several processes.
        mixer: draws the plan from ``generator``.
        loss: maps outputs and soft targets to terms.
        batch: images ``(B, C, ...)``, labels, companions or None; or a pair (images, labels).
        progress: the share of training that is done; None: settings that change with it are at full strength.
        compare: label smoothing, weights of classes, and what is left out of the terms.
    """
    batch = Batch.of(batch)
    plan = mixer(batch.images, batch.labels, companions=batch.companions, generator=generator, progress=progress)
    return follow(cohort, loss, StepInput(batch, plan, progress), compare)


def follow(cohort: nn.Module, loss: nn.Module, given: StepInput, compare: Compare = Compare()) -> Step:
    """The step of a plan that is drawn already.

    Args:
        cohort, loss, compare: as in :func:`train_step`. Outputs and targets of the step are those of the whole batch.
        given: batch, plan and progress.
    """
    outputs: Outputs = cohort(given.batch.seen, given.plan)
    targets = given.plan.targets(given.batch.labels, num_classes=outputs.logits.shape[-1])
    terms = compare(loss, outputs, targets, given.progress)
    return Step(terms, outputs, targets, Loss.of(loss).watched)
