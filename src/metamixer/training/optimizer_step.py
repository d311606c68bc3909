"""From a batch and its plan to new weights: forward, backward and update, in parts where a batch is too large, with an
answer to losses that are not finite and to memory that is short.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.plan import MixPlan
from metamixer.core.types import Batch, total
from metamixer.training.distributed import Engine
from metamixer.training.nan_checks import LateLook, not_finite, not_finite_images
from metamixer.training.out_of_memory import is_of_memory, what_fits
from metamixer.training.small_loss import SmallLoss
from metamixer.training.train_step import Step, follow

Computed = tuple[dict[str, Tensor], Tensor, Tensor]
"""What a step computes: terms and watched numbers by name ``(P,)``, logits ``(P, B, C)``, soft targets ``(B, C)``."""

Update = Literal["joint", "alternating"]
OnNonfinite = Literal["stop", "skip", "backoff"]
MOST_SKIPPED = 10
"""Steps in a row that may be skipped: more of them are no accident."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says which peer, which term and what to try."""


class NotFiniteError(TrainingError):
    """A loss or a gradient became infinite or NaN."""


class DoesNotFit(TrainingError):
    """The memory is too small for the batch; the message says what fits."""


class Line(nn.Module):
    """Cohort and loss as one module: what Fabric wraps, what a checkpoint holds.

    The work comes in as a function: Fabric walks through arguments to convert tensors and refuses frozen dataclasses.
    """

    def __init__(self, cohort: Cohort, loss: nn.Module) -> None:
        super().__init__()
        self.cohort = cohort
        self.loss = loss

    def forward(
        self, work: Callable[[Cohort, nn.Module], Step]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
        """What the step computed, as Fabric can handle it."""
        step = work(self.cohort, self.loss)
        return dict(step.terms), dict(step.watched), step.outputs.logits, step.targets


class Updates:
    """Updates the weights of all peers from one batch.

    Args:
        engine: device, precision, processes.
        line: cohort and loss.
        module: the line as the engine set it up.
        optimizer: as the engine set it up.
        clip: the largest gradient norm of a peer, or None.
        names: of the peers, for messages.
        update: ``joint`` or ``alternating``.
        micro_batches: parts that a batch is computed in, one after the other; the gradients add up.
        on_nonfinite: what follows a loss or gradient that is not finite. ``stop``: an error. ``skip``: this step
            changes nothing, batch norm's statistics included. ``backoff``: that, and half the learning rate afterwards.
        select: leaves samples out of the loss, of each part and each process's share by itself.
    """

    def __init__(
        self,
        engine: Engine,
        line: Line,
        module: Any,
        optimizer: Any,
        *,
        clip: float | None,
        names: Sequence[str],
        update: Update = "joint",
        micro_batches: int = 1,
        on_nonfinite: OnNonfinite = "stop",
        select: SmallLoss | None = None,
    ) -> None:
        self.engine, self.line, self.module, self.optimizer = engine, line, module, optimizer
        self.clip, self.names, self.update = clip, names, update
        self.micro_batches, self.on_nonfinite, self.select = micro_batches, on_nonfinite, select
        self.factor = 1.0
        """Of the learning rate; ``backoff`` halves it."""
        self.skipped_in_a_row = 0
        # Reading a loss waits for the device. On an accelerator that is done one step late, unless it must decide.
        self._looks_at_once = engine.device.type == "cpu" or on_nonfinite != "stop"
        self._late = LateLook(names)

    def __call__(self, batch: Batch, plan: MixPlan, progress: float, when: str) -> Computed | None:
        """One step; None if it was skipped.

        Args:
            batch: of this process.
            plan: for that batch.
            progress: the share of training that is done.
            when: the step, for messages.

        Raises:
            TrainingError: the parts do not fit together, a loss is not finite, or the memory is too small.
        """
        kept = None if self.on_nonfinite == "stop" else [buffer.clone() for buffer in self.line.buffers()]
        try:
            computed = self._compute(batch, plan, progress)
        except _NotFinite as found:
            self._skip(not_finite_images(batch.images) or str(found), when, kept)
            return None
        except (RuntimeError, MemoryError) as error:
            if not is_of_memory(error):
                raise
        else:
            self.skipped_in_a_row = 0
            if not self._looks_at_once and (found_late := self._late.look(computed[0], when)):
                raise NotFiniteError(found_late)
            return computed

        # Only here, because the error held on to every tensor of the step.
        def fits(parts: int) -> bool:
            return self._fits(batch, plan.within(parts).part(0, parts), parts, progress)

        alone = self.engine.world == 1 and self.update == "joint"
        raise DoesNotFit(what_fits(batch, self.micro_batches, fits if alone else None))

    def finish(self) -> None:
        """Look at the last step as well, before its weights are saved.

        Raises:
            NotFiniteError: its loss was not finite.
        """
        if found := self._late.rest():
            raise NotFiniteError(found)

    def _compute(self, batch: Batch, plan: MixPlan, progress: float) -> Computed:
        if self.update == "joint":
            return self._learn(batch, plan, progress, None)
        terms: dict[str, Tensor] = {}
        for peer in self.line.cohort.learners:
            now, logits, targets = self._learn(batch, plan, progress, peer)
            for name, value in now.items():  # each peer's own number, from when it was its turn
                own = torch.arange(len(value), device=value.device) == peer
                terms[name] = torch.where(own, value.detach(), terms.get(name, value.detach()))
        return terms, logits, targets

    def _learn(self, batch: Batch, plan: MixPlan, progress: float, peer: int | None) -> Computed:
        """Forward, backward and an update of all peers, or of one."""
        self.optimizer.zero_grad(set_to_none=True)
        terms, watched, logits, targets = self._gradients(batch, plan, progress, peer)
        norms = self._clip()
        if self._looks_at_once:
            wrong = not_finite(terms, self.names) or _wrong_norms(norms, self.optimizer)
            if self.engine.largest(float(bool(wrong)))[0]:
                raise _NotFinite(next(found for found in self.engine.everyone(wrong) if found))
        self.optimizer.step()
        return {**terms, **watched}, logits, targets

    def _gradients(
        self, batch: Batch, plan: MixPlan, progress: float, peer: int | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
        """Terms, what is watched, logits and targets of the batch; its gradients are on the weights."""
        parts = self.micro_batches
        whole = len(batch if batch.whole is None else batch.whole)
        found = []
        for number in range(parts):
            part = batch.part(number, parts)
            # Parts and shares differ by a sample where they do not divide the batch: each counts by its size.
            weight = len(part) * self.engine.shares / whole
            last = number == parts - 1
            with nullcontext() if last else self.engine.without_averaging(self.module):
                terms, watched, logits, targets = self._forward(part, plan.part(number, parts), progress, peer)
                objective = total(terms if peer is None else {name: term[peer] for name, term in terms.items()})
                self.engine.backward(objective if weight == 1 else objective * weight)
            if parts == 1:
                return terms, watched, logits, targets
            share = len(part) / len(batch)
            found.append(
                (
                    {name: term.detach() * share for name, term in terms.items()},
                    {name: value.detach() * share for name, value in watched.items()},
                    logits.detach(),
                    targets,
                )
            )
        return (
            _added([each[0] for each in found]),
            _added([each[1] for each in found]),
            torch.cat([each[2] for each in found], 1),
            torch.cat([each[3] for each in found]),
        )

    def _forward(
        self, batch: Batch, plan: MixPlan, progress: float, peer: int | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor]:
        def work(cohort: Cohort, loss: nn.Module) -> Step:
            return follow(cohort, loss, batch, plan, progress, self.select)

        try:
            with self.line.cohort.learning(peer):
                computed: tuple[dict[str, Tensor], dict[str, Tensor], Tensor, Tensor] = self.module(work)
                return computed
        except ValueError as error:  # how parts say that they do not fit together
            raise TrainingError(str(error)) from error

    def _clip(self) -> list[Tensor]:
        """The gradient norm of every group before it was clipped; none where nobody needs them."""
        if self.clip is None and self.on_nonfinite == "stop":
            return []
        largest = float("inf") if self.clip is None else self.clip
        return [torch.nn.utils.clip_grad_norm_(group["params"], largest) for group in self.optimizer.param_groups]

    def _skip(self, found: str, when: str, kept: list[Tensor] | None) -> None:
        if kept is None:
            raise NotFiniteError(f"{found} in {when}: {_ADVICE}")
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.line.buffers(), kept, strict=True):
            buffer.copy_(before)
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > MOST_SKIPPED:
            raise NotFiniteError(f"{found} in {when}, and so did the {MOST_SKIPPED} steps before it: {_ADVICE}")
        done = "skipped"
        if self.on_nonfinite == "backoff":
            self.factor /= 2
            done = f"skipped, and the learning rate is {self.factor:g} of the schedule's from now on"
        if self.engine.is_first:
            warnings.warn(f"{found} in {when}: {done}", RuntimeWarning, stacklevel=4)

    def _fits(self, batch: Batch, plan: MixPlan, parts: int, progress: float) -> bool:
        """Whether the first of so many parts goes through forward and backward."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            terms = self._forward(batch.part(0, parts), plan, progress, None)[0]
            self.engine.backward(total(terms))
        except (RuntimeError, MemoryError) as error:
            if not is_of_memory(error):
                raise
            return False
        return True


_ADVICE = (
    "a lower optim.lr, optim.warmup=0.05 or optim.clip=5 usually helps, train.on_nonfinite=skip goes on without it"
)


class _NotFinite(Exception):
    """What was found, on its way to where it is decided."""


def _wrong_norms(norms: Sequence[Tensor], optimizer: Any) -> str:
    for norm, group in zip(norms, optimizer.param_groups, strict=False):
        if not bool(norm.isfinite()):
            return f"the gradient of {group['owner']} became {float(norm)}"
    return ""


def _added(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
