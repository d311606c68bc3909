"""The training loop: epochs, checkpoints, and bit-exact resuming."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.eval_mode import evaluating
from metamixer.core.machine import available_memory
from metamixer.core.plan import Mixer, MixPlan
from metamixer.core.seeding import derive, generator
from metamixer.core.types import Batch, Terms
from metamixer.data.files.streaming import worker_fault
from metamixer.evaluation.evaluate import Report, evaluate
from metamixer.losses.base import Loss
from metamixer.training.auto_strength import AutoStrength, is_auto
from metamixer.training.batches import Batches, HeldOut, held_out, training_batches
from metamixer.training.callbacks import Callback, EpochRecord, Start, StepRecord
from metamixer.training.class_weights import weights_of
from metamixer.training.distributed import ProcessGrid
from metamixer.training.half_precision import warn_if_slow
from metamixer.training.interrupt import Interrupted, Watch
from metamixer.training.nan_checks import not_finite
from metamixer.training.optimizer import Optim
from metamixer.training.optimizer_step import CohortWithLoss, DoesNotFit, NotFiniteError, TrainingError, Updates
from metamixer.training.out_of_memory import kept_bytes, too_large
from metamixer.training.peer_settings import Freezing, PeerSettings
from metamixer.training.resume import Best, Keeper, TrainingState
from metamixer.training.running_means import Sums
from metamixer.training.sanity_check import check_learning, check_parts, dry_run, wrong_label
from metamixer.training.settings import Precision, RunInfo, TrainSettings, Update
from metamixer.training.small_loss import SmallLoss
from metamixer.training.train_step import Compare, StepInput

__all__ = ["Batches", "Best", "Fitted", "Precision", "TrainSettings", "Trainer", "TrainingError", "Update"]


@dataclass(frozen=True)
class Fitted:
    """How training ended.

    Args:
        step: number of steps done.
        val: metrics on the validation split after the last epoch, or None without validation.
        epochs: number of epochs done; ``patience`` may have stopped training early.
        best: the peer to deploy; its weights are in the checkpoint ``BEST`` of the run folder.
    """

    step: int
    val: Report | None
    best: Best
    epochs: int


class Trainer:
    """Trains a cohort. All parts are passed as objects; the only files are checkpoints.

    Args:
        cohort: the peers.
        mixer: draws the plan of each step.
        loss: maps outputs and soft targets to terms: a :class:`~metamixer.losses.Loss`, or an ``nn.Module`` with the
            same call and any of its hooks.
        settings: settings of the loop.
        optim: optimizer and schedule.
        peers: settings of each peer: learning rate, weight decay, and frozen stages.
        grid: processes that are already started; None: start those of the settings.
        folder: folder of the checkpoints (``checkpoints/``); None: write none.
        names: names of the peers in messages.
        callbacks: read-only callbacks, see :class:`Callback`.
        info: information about the run.
        changes: settings by name, such as ``epochs=30``, which replace those of ``settings``.

    Raises:
        TypeError: a setting is unknown.
        ValueError: a setting is out of its range.
        TrainingError: the parts do not fit together.
    """

    def __init__(
        self,
        cohort: Cohort,
        mixer: Mixer,
        loss: nn.Module,
        settings: TrainSettings | None = None,
        *,
        optim: Optim | None = None,
        peers: Sequence[PeerSettings] = (),
        grid: ProcessGrid | None = None,
        folder: Path | None = None,
        names: Sequence[str] | None = None,
        callbacks: Sequence[Callback] = (),
        info: RunInfo | None = None,
        **changes: Any,
    ) -> None:
        known = {each.name for each in fields(settings or TrainSettings)}
        if unknown := sorted(changes.keys() - known):
            raise TypeError(f"Trainer has no setting {', '.join(unknown)}; accepted are {', '.join(sorted(known))}")
        self.settings = replace(settings or TrainSettings(), **changes)
        self.cohort, self.mixer, self.loss = cohort, mixer, loss
        self.optim, self.peers, self.info = optim or Optim(), tuple(peers), info or RunInfo()
        try:
            if is_auto(mixer):
                AutoStrength(self.settings)  # checks the settings
            self.grid = grid or ProcessGrid(self.settings)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        check_parts(cohort, loss, self.grid, self.settings)
        self.mixing_groups = self.settings.mixing_groups or self.grid.shares * self.settings.micro_batches
        self.names = tuple(names or (str(index) for index in range(len(cohort.peers))))
        self.callbacks = tuple(callbacks)
        self._keeper = Keeper(self.grid, folder, self.info.facts)
        self._watch = Watch()

    @property
    def device(self) -> torch.device:
        """The device of the peers and of training batches."""
        return self.grid.device

    def fit(
        self,
        train: Batches | Iterable[Any],
        val: Iterable[Any] | None = None,
        *,
        plain: Iterable[Any] | None = None,
        resume: bool = False,
    ) -> Fitted:
        """Train for all epochs.

        Args:
            train: a ``DataLoader`` of (images, labels), whose order and random numbers then depend on the seed, or
                :class:`Batches`. Labels are class indices or soft labels.
            val: batches or a ``DataLoader`` for validation; None: deploy the weights of the last epoch.
            plain: batches or a ``DataLoader`` of a fixed part of the training images without augmentation, for a mixer
                with ``strength="auto"``; the gap between the accuracies on them and on ``val`` sets the strength.
            resume: resume from the latest checkpoint.

        Raises:
            TrainingError: a loss is not finite, there is not enough memory, or a peer cannot take the images.
            WorkerError: a process that decodes images ended.
            ProcessLost: another process of the run ended.
            Interrupted: SIGINT, SIGTERM, SIGHUP or SIGUSR1 was received; a checkpoint of the last step was written.
            CheckpointError: no checkpoint is usable, or it was written with another recipe.
        """
        if self.settings.patience is not None and val is None:
            raise TrainingError(f"patience={self.settings.patience} needs validation data; accepted without is None")
        strength = self._strength(val, plain)
        self.grid.launch()
        if self.grid.is_first:
            warn_if_slow(self.settings.precision, self.device.type)
        try:
            with self.grid.naming_lost_processes():
                return self._fit(train, None if val is None else held_out(val, self.grid), strength, resume)
        except RuntimeError as error:  # torch reports the death of a data worker in a signal handler, at any point
            if fault := worker_fault(error):
                raise fault from error
            raise

    def _fit(self, given: Any, val: HeldOut | None, strength: AutoStrength | None, resume: bool) -> Fitted:
        counts, reading = getattr(given, "class_counts", None), getattr(given, "reading", "")
        train = training_batches(given, self.grid, self.settings.seed)
        first = next(iter(train.epoch(0)))
        known = dry_run(self.cohort, self.loss, first, self.grid, self.names, self.settings.seed, self.info.classes)
        self._check_memory(first)
        check_learning(self.cohort, first, train.smallest(first), self.grid, self.settings.micro_batches, self.names)
        try:
            self._freezing = Freezing(self.cohort, self.peers, first.images[:2].to(self.grid.device))
        except ValueError as error:
            raise TrainingError(f"freeze: {error}") from error
        compare = _compare(self.settings, counts, known, self.grid.device)
        learner = CohortWithLoss(self.cohort, self.loss, compare, self.settings.ema)
        module, optimizer = self.grid.setup(learner), self._optimizer(learner)
        updates = Updates(
            self.grid,
            learner,
            module,
            optimizer,
            clip=self.optim.clip,
            names=self.names,
            settings=self.settings,
            signal=lambda: self._watch.received,
        )
        self._run = TrainingState(learner, optimizer, updates, Sums(), known, strength=strength)
        if resume:
            self._keeper.resume(self._run)
        start = Start(self.settings.epochs, len(train), self._run.step, self.names, reading, self.info.notes)
        active = self.callbacks if self.grid.is_first else ()
        try:
            with self._watch:  # before any output shows that training has begun, because a signal may follow it
                for callback in active:
                    callback.on_start(start)
                val_report = self._epochs(train, val, active, reading)
        except NotFiniteError as error:
            raise NotFiniteError(f"{error}; {self._keeper.last}") from error
        finally:
            for callback in active:
                with self._watch.without_terminal():
                    callback.on_end()
        assert self._run.best is not None  # noqa: S101
        return Fitted(self._run.step, val_report, self._run.best, self._run.step // len(train))

    def _optimizer(self, learner: CohortWithLoss) -> torch.optim.Optimizer:
        try:
            return self.optim.build(learner.cohort, learner.loss, self.peers, self._freezing.weights)
        except ValueError as error:
            if self.grid.groups == 1:
                raise
            raise TrainingError(
                f"peer group {self.grid.group} has frozen peers only: each needs one that learns"
            ) from error

    def _strength(self, val: Iterable[Any] | None, plain: Iterable[Any] | None) -> AutoStrength | None:
        if not is_auto(self.mixer):
            return None
        if val is None or plain is None:
            lacking = "validation data (val)" if val is None else "training images without augmentation (plain)"
            raise TrainingError(
                f"a mixer with strength='auto' needs {lacking}; accepted without is a number in [0, 1], such as 1"
            )
        return AutoStrength(self.settings, held_out(plain, self.grid))

    def _check_memory(self, first: Batch) -> None:
        if self.device.type != "cpu" or self.settings.update != "joint" or self.cohort.compiled:
            return
        with evaluating(self.cohort), self.grid.autocast():
            each = kept_bytes(self.cohort, first.images[:2].clone())
        if short := too_large(each, first, self.settings.micro_batches, available_memory()):
            raise DoesNotFit(short)

    def _epochs(self, train: Batches, val: HeldOut | None, active: Sequence[Callback], reading: str) -> Report | None:
        run, per_epoch = self._run, len(train)
        report: Report | None = None
        first, inside = divmod(run.step, per_epoch)
        if run.open_epoch and not inside:  # stopped after the last step of an epoch, before its end
            first, inside = first - 1, per_epoch
        elif val is not None and (first >= self.settings.epochs or (not inside and self._is_over(first))):
            report = self.evaluate(val)
        for epoch in range(first, self.settings.epochs):
            if not inside and self._is_over(epoch):
                break
            began = time.perf_counter()
            if self._freezing.follow(epoch):  # DDP only averages weights that learned at its creation
                run.updates.module = self.grid.setup(run.learner)
            self.cohort.train()
            self.grid.align(self.cohort)
            self.grid.align_copies(self.loss)
            if not inside:
                Loss.of(self.loss).before_epoch(self.cohort, val)
            waited, images = 0.0, 0
            batches = train.epoch(epoch, inside)
            for number in range(inside, per_epoch):
                asked = time.perf_counter()
                batch = next(batches)
                wait = time.perf_counter() - asked
                terms = self._step(batch, epoch, number, per_epoch)
                waited += wait
                images += len(batch if batch.whole is None else batch.whole)
                record = StepRecord(
                    epoch=epoch + 1,
                    step=run.step,
                    images=len(batch),
                    terms=terms,
                    lr=run.rate,
                    waited=wait,
                    seconds=time.perf_counter() - asked,
                )
                for callback in active:
                    with self._watch.without_terminal():
                        callback.on_step(record)
                self._stop_if_asked(last=number == per_epoch - 1)
            inside = 0
            terms_mean, accuracy = run.sums.summed(self.grid.summed).means()  # synchronizes
            trained = time.perf_counter() - began
            run.updates.finish()
            if wrong := not_finite({name: torch.tensor(value) for name, value in terms_mean.items()}, self.names):
                raise NotFiniteError(f"{wrong} in epoch {epoch + 1}")
            skipped, run.skipped = run.skipped, 0
            run.sums = Sums()
            due = epoch + 1 == self.settings.epochs or (epoch + 1) % self.settings.validate_every == 0
            report = self.evaluate(val) if val is not None and due else None
            strength = overfitting = None
            if run.strength is not None:
                done = (epoch + 1) / self.settings.epochs
                strength, overfitting = run.strength.follow(self.evaluate, report, self.cohort.learners, done)
            record_epoch = EpochRecord(
                epoch=epoch + 1,
                step=run.step,
                lr=run.rate,
                terms=terms_mean,
                train_accuracy=accuracy,
                val=report,
                images_per_second=images / trained,
                waiting=waited / trained,
                seconds=time.perf_counter() - began,
                reading=reading,
                skipped=skipped,
                strength=strength,
                overfitting=overfitting,
            )
            for callback in active:
                with self._watch.without_terminal():
                    callback.on_epoch(record_epoch)
            # Last: a run that is killed before repeats this epoch, and its callbacks write their output again.
            self._keep(epoch + 1, report, chosen_by_validation=val is not None)
        return report

    def _step(self, batch: Batch, epoch: int, number: int, per_epoch: int) -> Terms:
        run, grid = self._run, self.grid
        progress = run.step / (self.settings.epochs * per_epoch)
        # Reading labels synchronizes accelerators, so there only those of the first step are checked.
        if (grid.device.type == "cpu" or run.step == 0) and (wrong := wrong_label(batch, run.classes)):
            raise TrainingError(f"{wrong} (epoch {epoch + 1}, batch {number + 1})")
        scheduled = self.settings.schedule(run.step / per_epoch) if self.settings.continued else progress
        self._set_rate(self.optim.rate(scheduled) * run.updates.factor)
        # Dropout draws from the global generator of torch, so seed it for each step.
        torch.manual_seed(derive(self.settings.seed, "network", run.step, grid.rank))
        when = f"step {run.step + 1} (epoch {epoch + 1}, batch {number + 1}, learning rate {run.rate:g})"
        step = run.updates(StepInput(batch, self._plan(batch, progress), progress), when)
        run.step += 1
        if step is None:
            run.skipped += 1
            return {}
        terms = {**step.terms, **step.watched}
        Loss.of(self.loss).after_step(self.cohort)
        if (average := run.learner.average) is not None:
            average.update(self.cohort, run.step)
        run.sums.add(terms, step.outputs.logits, step.targets)
        return terms

    def _plan(self, batch: Batch, progress: float) -> MixPlan:
        """The part of this process of the plan of the whole batch, which all processes draw identically."""
        draws = generator(self.settings.seed, "mix", self._run.step, 0)
        labels, images, companions = batch.labels, batch.images, batch.companions
        if batch.whole is not None:  # mixers only use the shape of images, so those of other processes are not needed
            labels = batch.whole
            images = images[:1].expand(len(labels), *images.shape[1:])
            companions = None if companions is None else companions[:1].expand(len(labels), *companions.shape[1:])
        mixer: Any = self.mixer
        if self._run.strength is not None:
            mixer = partial(mixer, strength=self._run.strength.value)
        plan: MixPlan = mixer(images, labels, companions=companions, generator=draws, progress=progress)
        plan = plan.within(self.mixing_groups)
        if batch.whole is None:
            return plan
        return plan.part(self.grid.share, self.grid.shares, batch.companions)

    def _set_rate(self, rate: float) -> None:
        run = self._run
        run.rate = rate
        for group in run.optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def evaluate(self, batches: Iterable[Any], averaged: bool = True) -> Report:
        """Evaluate every peer and the ensemble on held-out batches, which are divided among the processes.

        Args:
            batches: the same batches in every process.
            averaged: use the averaged weights, if there are any; False: use the current weights.
        """
        average = self._run.learner.average if averaged and hasattr(self, "_run") else None
        if average is not None:
            self.grid.align(average)
            with average.shown(self.cohort):
                return self.evaluate(batches, averaged=False)
        self.grid.align(self.cohort)
        held = batches if isinstance(batches, HeldOut) else HeldOut(batches, self.grid)
        return evaluate(
            self.cohort, held.shared(), names=self.names, precision=self.grid.autocast(), add=self.grid.summed
        )

    def _keep(self, epoch: int, report: Report | None, chosen_by_validation: bool) -> None:
        run, last = self._run, epoch == self.settings.epochs
        learning = list(Loss.of(self.loss).deployable(len(self.cohort.peers)) or self.cohort.learners)
        better = False
        if report is not None:
            found = max(
                (Best(epoch, index, report.peers[index].accuracy, report.peers[index].nll) for index in learning),
                key=lambda best: best.order,
            )
            better = found.beats(run.best)
        elif last and not chosen_by_validation:
            found, better = Best(epoch, learning[0], float("nan"), float("nan")), True
        if better:
            run.best, run.best_step = found, run.step
            # LATEST last: a run that is killed in between repeats this epoch.
            self._keeper.save(run, "BEST", "LATEST", whole=True)
        elif last or epoch % self.settings.checkpoint_every == 0 or self._is_over(epoch):
            self._keeper.save(run, "LATEST", whole=True)

    def _is_over(self, epoch: int) -> bool:
        """Whether early stopping ends training after an epoch, from the state in the checkpoint only."""
        best, patience = self._run.best, self.settings.patience
        if patience is None or best is None or epoch % self.settings.validate_every:
            return False
        return epoch - best.epoch >= patience

    def _stop_if_asked(self, *, last: bool) -> None:
        if number := self._run.updates.signalled(anew=last):  # also before validation, which may take long
            raise Interrupted(number, self._run.step, self._keeper.save(self._run, "LATEST", whole=False))


def _compare(settings: TrainSettings, counts: Any, classes: int, device: torch.device) -> Compare:
    """The comparison of outputs and targets from the settings; ``counts``: training images of each class, or None."""
    rate, weights = settings.select_small_loss, None
    if settings.class_weights != "none":
        if counts is None or len(counts) != classes:
            raise TrainingError(
                f"class_weights={settings.class_weights!r}: the training batches do not say how many images each of "
                f"the {classes} classes has; accepted are batches with an attribute class_counts, as of TrainLoader"
            )
        weights = weights_of(settings.class_weights, counts, settings.class_weights_beta)
    select = SmallLoss(rate, settings.select_small_loss_ramp) if rate else None
    return Compare(settings.label_smoothing, select, None if weights is None else weights.to(device))
