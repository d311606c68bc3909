"""One optimizer step: forward, backward and update, optionally in micro-batches, with handling of losses that are not
finite and of out-of-memory errors.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.types import Outputs, Terms, total
from metamixer.training.average import Average
from metamixer.training.distributed import ProcessGrid
from metamixer.training.nan_checks import LateLook, not_finite, not_finite_images
from metamixer.training.optimizer import by_owner
from metamixer.training.out_of_memory import is_of_memory, what_fits
from metamixer.training.settings import TrainSettings
from metamixer.training.train_step import Compare, Step, StepInput, follow

MOST_SKIPPED = 10
"""The largest number of consecutive skipped steps."""


class TrainingError(RuntimeError):
    """Training cannot continue; the message says which peer, which term and what to try."""


class NotFiniteError(TrainingError):
    """A loss or a gradient became infinite or NaN."""


class DoesNotFit(TrainingError):
    """There is not enough memory for the batch; the message says what fits."""


class CohortWithLoss(nn.Module):
    """Cohort and loss as one module, with the averaged weights: the content of a checkpoint."""

    def __init__(
        self, cohort: Cohort, loss: nn.Module, compare: Compare | None = None, ema: float | None = None
    ) -> None:
        super().__init__()
        self.cohort = cohort
        self.loss = loss
        self.compare = compare or Compare()
        self.average = None if ema is None else Average(cohort, ema)

    def forward(self, given: Callable[[], StepInput]) -> Step:
        """Compute the step. The input is passed as a function, because DistributedDataParallel copies tensors."""
        return follow(self.cohort, self.loss, given(), self.compare)


class Updates:
    """Updates the weights of all peers from one batch.

    Args:
        grid: device, precision, processes.
        learner: cohort and loss.
        module: the learner after ``grid.setup``.
        optimizer: optimizer of its weights.
        clip: largest gradient norm of a peer, or None.
        names: names of the peers in messages.
        settings: how a batch is computed, and what to do if a loss or gradient is not finite.
        signal: returns the number of the signal that this process received, or 0.
    """

    def __init__(
        self,
        grid: ProcessGrid,
        learner: CohortWithLoss,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float | None,
        names: Sequence[str],
        settings: TrainSettings,
        signal: Callable[[], int] = lambda: 0,
    ) -> None:
        self.grid, self.learner, self.module, self.optimizer = grid, learner, module, optimizer
        self.clip, self.names, self.settings = clip, names, settings
        self.factor = 1.0
        """Factor of the learning rate, which ``backoff`` halves."""
        self._signal, self._agreed = signal, 0
        self.scaler = torch.amp.GradScaler(grid.device.type, enabled=settings.precision == "16")
        self.skipped_in_a_row = 0
        # Reading a loss synchronizes. On an accelerator it is read one step late, unless the step depends on it.
        self._looks_at_once = grid.device.type == "cpu" or settings.on_nonfinite != "stop"
        self._late = LateLook(names)

    def __call__(self, given: StepInput, when: str) -> Step | None:
        """Make one step; returns None if it was skipped.

        Args:
            given: batch, plan and progress of this process.
            when: description of the step in messages.

        Raises:
            TrainingError: the parts do not fit together, a loss is not finite, or there is not enough memory.
        """
        kept = None if self.settings.on_nonfinite == "stop" else [buffer.clone() for buffer in self.learner.buffers()]
        try:
            step = self._compute(given)
        except _NotFinite as found:
            self._skip(not_finite_images(given.batch.images) or str(found), when, kept)
            return None
        except (RuntimeError, MemoryError) as error:
            if not is_of_memory(error):
                raise
        else:
            self.skipped_in_a_row = 0
            if not self._looks_at_once and (found_late := self._late.look({**step.terms, **step.watched}, when)):
                raise NotFiniteError(found_late)
            return step

        # Outside the handler, because the exception references all tensors of the step.
        def fits(parts: int) -> bool:
            return self._fits(given.within(parts).part(0, parts))

        alone = self.grid.world == 1 and self.settings.update == "joint"
        raise DoesNotFit(what_fits(given.batch, self.settings.micro_batches, fits if alone else None))

    def signalled(self, *, anew: bool) -> int:
        """The number of a signal that any process received, the same in all processes at a step; 0 if none.

        Args:
            anew: exchange signals now. Otherwise return the result of the exchange in the last step, if there was one.
        """
        if self.grid.world > 1 and self._looks_at_once and not anew:
            return self._agreed
        return int(self.grid.largest(self._signal())[0])

    def finish(self) -> None:
        """Check the last step too, before its weights are saved.

        Raises:
            NotFiniteError: its loss was not finite.
        """
        if found := self._late.rest():
            raise NotFiniteError(found)

    def _compute(self, given: StepInput) -> Step:
        if self.settings.update == "joint":
            return self._learn(given, None)
        terms: dict[str, Tensor] = {}
        for peer in self.learner.cohort.learners:
            step = self._learn(given, peer)
            for name, value in {**step.terms, **step.watched}.items():  # values of each peer from its own pass
                own = torch.arange(len(value), device=value.device) == peer
                terms[name] = torch.where(own, value, terms.get(name, value))
        return step._replace(terms=terms, watched={})

    def _learn(self, given: StepInput, peer: int | None) -> Step:
        """Forward, backward and update of all peers, or of one."""
        self.optimizer.zero_grad(set_to_none=True)
        step = self._gradients(given, peer)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norms = self._clip()
        if self._looks_at_once:
            wrong = not_finite(step.terms, self.names)
            if not self.scaler.is_enabled():  # the scaler itself skips steps whose gradients overflow at its scale
                wrong = wrong or _wrong_norms(norms)
            # One collective for both: whether a value is not finite, and whether there was a signal.
            bad, signal = self.grid.largest(float(bool(wrong)), self._signal())
            self._agreed = int(signal)
            if bad:
                raise _NotFinite(next(found for found in self.grid.everyone(wrong) if found))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise NotFiniteError(f"gradients are not finite at any scale: accepted are precision=bf16 or 32, {_ADVICE}")
        return step

    def _gradients(self, given: StepInput, peer: int | None) -> Step:
        """Compute the step of a batch and accumulate its gradients in the weights."""
        parts, batch = self.settings.micro_batches, given.batch
        whole = len(batch if batch.whole is None else batch.whole)
        found = []
        for number in range(parts):
            part = given.part(number, parts)
            # Uneven parts and shares are weighted by their size.
            weight = len(part.batch) * self.grid.shares / whole
            last = number == parts - 1
            with nullcontext() if last else self.grid.without_averaging(self.module):
                step = self._forward(part, peer)
                objective = total(
                    step.terms if peer is None else {name: term[peer] for name, term in step.terms.items()}
                )
                self.grid.backward(self.scaler.scale(objective if weight == 1 else objective * weight))
            found.append((_numbers(step), len(part.batch) / len(batch)))
            del step, objective  # frees all activations
        return found[0][0] if parts == 1 else _joined(found)

    def _forward(self, given: StepInput, peer: int | None) -> Step:
        try:
            with self.learner.cohort.learning(peer), self.grid.autocast():
                step = cast(Step, self.module(lambda: given))
        except ValueError as error:  # raised by parts that do not fit together
            raise TrainingError(str(error)) from error
        return step._replace(terms=_float32(step.terms), watched=_float32(step.watched))

    def _clip(self) -> dict[str, Tensor]:
        """Clip gradients, and return the norm of every owner before clipping; empty if norms are not needed."""
        if self.clip is None and self.settings.on_nonfinite == "stop":
            return {}
        largest = float("inf") if self.clip is None else self.clip
        return {owner: nn.utils.clip_grad_norm_(own, largest) for owner, own in by_owner(self.optimizer).items()}

    def _skip(self, found: str, when: str, kept: list[Tensor] | None) -> None:
        if kept is None:
            raise NotFiniteError(f"{found} in {when}: {_ADVICE}")
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in zip(self.learner.buffers(), kept, strict=True):
            buffer.copy_(before)
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > MOST_SKIPPED:
            raise NotFiniteError(f"{found} in {when}, and so did the {MOST_SKIPPED} steps before it: {_ADVICE}")
        done = "skipped"
        if self.settings.on_nonfinite == "backoff":
            self.factor /= 2
            done = f"skipped, and the learning rate is {self.factor:g} of the schedule's from now on"
        if self.grid.is_first:
            warnings.warn(f"{found} in {when}: {done}", RuntimeWarning, stacklevel=4)

    def _fits(self, part: StepInput) -> bool:
        """Whether forward and backward of a part of a batch fit in memory."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.grid.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            self.grid.backward(self.scaler.scale(total(self._forward(part, None).terms)))
        except (RuntimeError, MemoryError) as error:
            if not is_of_memory(error):
                raise
            return False
        return True


_ADVICE = (
    "a lower optim.lr, optim.warmup=0.05 or optim.clip=5 usually helps, train.on_nonfinite=skip leaves the batch out"
)


class _NotFinite(Exception):
    """Internal: a non-finite value, with its description."""


def _wrong_norms(norms: Mapping[str, Tensor]) -> str:
    for owner, norm in norms.items():
        if not bool(norm.isfinite()):
            return f"the gradient of {owner} became {float(norm)}"
    return ""


def _float32(terms: Terms) -> dict[str, Tensor]:
    """Terms computed in half precision as float32, in which they are summed."""
    half = (torch.bfloat16, torch.float16)
    return {name: term.float() if term.dtype in half else term for name, term in terms.items()}


def _numbers(step: Step) -> Step:
    """A step without its graph and without the activations inside the networks."""
    terms, watched = ({name: value.detach() for name, value in of.items()} for of in (step.terms, step.watched))
    return Step(terms, Outputs(step.outputs.logits.detach()), step.targets, watched)


def _joined(found: Sequence[tuple[Step, float]]) -> Step:
    """Combine the steps of the parts of a batch, each with its share of the batch."""

    def added(parts: Sequence[tuple[Terms, float]]) -> dict[str, Tensor]:
        return {name: torch.stack([part[name] * share for part, share in parts]).sum(0) for name in parts[0][0]}

    return Step(
        added([(step.terms, share) for step, share in found]),
        Outputs(torch.cat([step.outputs.logits for step, _ in found], 1)),
        torch.cat([step.targets for step, _ in found]),
        added([(step.watched, share) for step, share in found]),
    )
