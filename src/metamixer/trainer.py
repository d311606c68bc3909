"""The loop: epochs, precision, devices, checkpoints, and a resumed run that ends in the same bits."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from metamixer import checkpoint
from metamixer.callbacks import Callback, EpochRecord, Start, StepRecord
from metamixer.cohort import Cohort
from metamixer.evaluate import Report, evaluate
from metamixer.graphs import Computed, StepGraphs
from metamixer.optim import Optim
from metamixer.plan import Mixer, MixPlan
from metamixer.records import Batch, Terms, total
from metamixer.seeds import derive, generator
from metamixer.signals import Interrupted, Watch
from metamixer.step import Step, follow
from metamixer.sums import Sums

Precision = Literal["32", "bf16"]
Update = Literal["joint", "alternating"]
_FABRIC_PRECISION: dict[Precision, Any] = {"32": "32-true", "bf16": "bf16-mixed"}


class Batches(Protocol):
    """Training data: the same epoch number gives the same batches, and an epoch can be entered anywhere."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` (counted from 0) from number ``start`` on."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says which peer, which term and what to try."""


@dataclass(frozen=True)
class Best:
    """The best peer so far by validation accuracy (negative log-likelihood breaks ties).

    Without validation data: the first peer that learns, after the last epoch.
    """

    epoch: int
    peer: int
    accuracy: float
    nll: float

    @property
    def order(self) -> tuple[float, float]:
        """What is compared: the higher, the better."""
        return self.accuracy, -self.nll

    def beats(self, other: Best | None) -> bool:
        """Whether this one is strictly better."""
        return other is None or self.order > other.order


@dataclass(frozen=True)
class Fitted:
    """How training ended.

    Args:
        step: steps done.
        val: figures on the validation split after the last epoch, or None without one.
        best: which peer to deploy; its weights are those of the checkpoint ``BEST`` of the run's folder.
    """

    step: int
    val: Report | None
    best: Best


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    """Without its notice that the precision which was asked for is used."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Line(nn.Module):
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
        step = work(self.cohort, self.loss)
        return dict(step.terms), dict(step.watched), step.outputs.logits, step.targets


class Trainer:
    """Trains a cohort. It gets parts that are built, and knows no names and no files but its own checkpoints.

    Args:
        cohort: the peers.
        mixer: draws each step's plan.
        loss: maps outputs and soft targets to terms. Called where it has them: ``setup`` once, ``before_epoch`` with
            the cohort and the validation batches, ``after_step``, and ``deployable`` for the peers to choose from.
        optim: optimizer and schedule.
        epochs: how many times the training data is seen.
        seed: of everything random in training, the networks' dropout included.
        precision: ``32`` or ``bf16`` (autocast).
        accelerator, devices, num_nodes: as in Lightning Fabric: ``auto``, ``cpu``, ``cuda``; how many.
        update: ``joint``: all peers learn from one forward pass. ``alternating``: one after the other, each from what
            the others predict after their own update (Algorithm 1 of arXiv 1706.00384); P forward passes of each.
        graphs: capture whole steps as CUDA graphs, one for each stage of mixing. One GPU only.
        folder: where checkpoints go (``checkpoints/``); None: none are written.
        checkpoint_every: epochs between checkpoints. One is also written at the end and when a signal comes.
        validate_every: epochs between validations; the last epoch always ends with one.
        names: of the peers, for messages.
        callbacks: they look.
        facts: what the checkpoints' manifests say beside the step, such as a hash of the recipe.
    """

    def __init__(
        self,
        cohort: Cohort,
        mixer: Mixer,
        loss: nn.Module,
        *,
        optim: Optim | None = None,
        epochs: int,
        seed: int = 0,
        precision: Precision = "32",
        accelerator: str = "auto",
        devices: int = 1,
        num_nodes: int = 1,
        update: Update = "joint",
        graphs: bool = False,
        folder: Path | None = None,
        checkpoint_every: int = 1,
        validate_every: int = 1,
        names: Sequence[str] | None = None,
        callbacks: Sequence[Callback] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if epochs < 1:
            raise ValueError(f"epochs={epochs}: at least one")
        self.cohort, self.mixer, self.loss = cohort, mixer, loss
        self.optim = optim or Optim()
        self.epochs, self.seed = epochs, seed
        self.checkpoint_every, self.validate_every = checkpoint_every, validate_every
        with _quiet_fabric():
            self.fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                precision=_FABRIC_PRECISION[precision],
            )
        self.update, self.graphs = update, graphs
        self._check_engine()
        self.names = tuple(names or (str(index) for index in range(len(cohort.peers))))
        self.checkpoints = folder / "checkpoints" if folder else None
        self.callbacks = tuple(callbacks)
        self.facts = dict(facts or {})
        self._watch = Watch()

    def _check_engine(self) -> None:
        """What the chosen device cannot do, said before anything is loaded."""
        if self.update not in get_args(Update):
            raise TrainingError(f"update={self.update!r}: {', '.join(get_args(Update))} would work")
        if self.update == "alternating" and (self.graphs or self.cohort.branched or self.cohort.parallel == "threads"):
            raise TrainingError(
                "update='alternating' trains separate networks one after the other, without graphs, threads or a "
                "shared trunk; update='joint' would work"
            )
        alone = self.fabric.world_size == 1
        if self.graphs and (self.device.type != "cuda" or not alone):
            raise TrainingError(
                f"graphs=True captures the steps of one CUDA device; here are {self.fabric.world_size} on "
                f"{self.device.type}: graphs=False would work"
            )
        if self.cohort.parallel == "threads" and (self.device.type != "cpu" or not alone):
            raise TrainingError(
                "parallel='threads' shares the cores of one process on a CPU; here are "
                f"{self.fabric.world_size} on {self.device.type}: parallel='none' would work"
            )
        if self.cohort.parallel == "streams" and self.device.type != "cuda":
            raise TrainingError("parallel='streams' needs a CUDA device; 'threads' or 'none' would work")

    @property
    def device(self) -> torch.device:
        """Where the peers train; training batches come on it."""
        device: torch.device = self.fabric.device
        return device

    def fit(self, train: Batches, val: Iterable[Batch] | None = None, *, resume: bool = False) -> Fitted:
        """Train for all epochs, or from the latest checkpoint on.

        Raises:
            TrainingError: a loss was not finite, or a peer cannot take the images.
            Interrupted: SIGINT or SIGTERM; a checkpoint of this step was written.
            CheckpointError: no checkpoint is usable, or it is of another recipe.
        """
        if not len(train):
            raise ValueError("there is no batch to train on")
        self.fabric.launch()
        self._prepare(train)
        line = _Line(self.cohort, self.loss)
        module, optimizer = self.fabric.setup(line, self.optim.build(self.cohort, self.loss))
        self._run = _Run(line, module, optimizer, Sums(), step=0, best=None)
        if resume:
            self._resume()
        if self.graphs:
            self._capture()
        start = Start(self.epochs, len(train), self._run.step, self.names, getattr(train, "reading", ""))
        looking = self.callbacks if self.fabric.is_global_zero else ()
        try:
            for callback in looking:
                callback.on_start(start)
            with self._watch:
                val_report = self._epochs(train, val, looking)
        finally:
            for callback in looking:
                callback.on_end()
        assert self._run.best is not None  # noqa: S101
        return Fitted(self._run.step, val_report, self._run.best)

    def _prepare(self, train: Batches) -> None:
        """A dry run of every peer on two images: what does not fit is said before the first step."""
        if any(isinstance(module, nn.Conv2d) for module in self.cohort.modules()):
            self.cohort.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.cohort.to(self.device)
        batch = next(iter(train.epoch(0)))
        images = batch.images[:2].to(self.device)
        training = self.cohort.training
        self.cohort.eval()
        try:
            with torch.no_grad():
                for name, peer in zip(self.names, self.cohort.peers, strict=True):
                    try:
                        peer(images.to(next(peer.parameters()).dtype))
                    except (RuntimeError, ValueError, AssertionError) as error:
                        shape = "×".join(str(size) for size in images.shape[1:])
                        raise TrainingError(f"peer {name} cannot take images of {shape}: {error}") from error
                outputs = self.cohort(images.to(next(self.cohort.parameters()).dtype))
        finally:
            self.cohort.train(training)
        classes = outputs.logits.shape[-1]
        if setup := getattr(self.loss, "setup", None):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(self.seed, "loss"))
                try:
                    setup(outputs)
                except ValueError as error:
                    raise TrainingError(str(error)) from error
            self.loss.to(self.device)
        if int(batch.labels.max()) >= classes:
            raise TrainingError(f"there is a label {int(batch.labels.max())}, the peers know {classes} classes")

    def _epochs(self, train: Batches, val: Iterable[Batch] | None, looking: Sequence[Callback]) -> Report | None:
        run, per_epoch = self._run, len(train)
        report: Report | None = None
        first, inside = divmod(run.step, per_epoch)
        if run.sums.images and not inside:  # stopped after the last step of an epoch, before it was closed
            first, inside = first - 1, per_epoch
        elif run.step >= self.epochs * per_epoch and val is not None:
            report = self._evaluate(val)
        for epoch in range(first, self.epochs):
            began = time.perf_counter()
            self.cohort.train()
            if not inside and (before_epoch := getattr(self.loss, "before_epoch", None)):
                before_epoch(self.cohort, val)
            waited, images = 0.0, run.sums.images
            batches = train.epoch(epoch, inside)
            for _ in range(inside, per_epoch):
                asked = time.perf_counter()
                batch = next(batches)
                wait = time.perf_counter() - asked
                terms = self._step(self._share(batch), per_epoch)
                waited += wait
                record = StepRecord(
                    epoch=epoch + 1,
                    step=run.step,
                    images=len(batch),
                    terms=terms,
                    lr=run.rate,
                    waited=wait,
                    seconds=time.perf_counter() - asked,
                )
                for callback in looking:
                    callback.on_step(record)
                self._stop_if_asked()
            inside = 0
            terms_mean, accuracy = run.sums.means()  # waits for the device
            trained = time.perf_counter() - began
            self._check_finite(terms_mean, f"epoch {epoch + 1}")
            rate = (run.sums.images - images) / trained
            run.sums = Sums()
            due = epoch + 1 == self.epochs or (epoch + 1) % self.validate_every == 0
            report = self._evaluate(val) if val is not None and due else None
            self._keep(epoch + 1, report, chosen_by_validation=val is not None)
            record_epoch = EpochRecord(
                epoch=epoch + 1,
                step=run.step,
                lr=run.rate,
                terms=terms_mean,
                train_accuracy=accuracy,
                val=report,
                images_per_second=rate,
                waiting=waited / trained,
                seconds=time.perf_counter() - began,
                reading=getattr(train, "reading", ""),
            )
            for callback in looking:
                callback.on_epoch(record_epoch)
        return report

    def _step(self, batch: Batch, per_epoch: int) -> Terms:
        run = self._run
        progress = run.step / (self.epochs * per_epoch)
        self._set_rate(self.optim.rate(progress))
        # Dropout draws from torch's global generator, so it is seeded for the step.
        torch.manual_seed(derive(self.seed, "network", run.step, self.fabric.global_rank))
        draws = generator(self.seed, "mix", run.step, self.fabric.global_rank)
        plan = self.mixer(batch.images, batch.labels, companions=batch.companions, generator=draws, progress=progress)
        terms, logits, targets = (run.graphs or self._compute)(batch, plan, progress)
        if after_step := getattr(self.loss, "after_step", None):
            after_step(self.cohort)
        run.sums.add(terms, logits.detach(), targets)
        run.step += 1
        return terms

    def _capture(self) -> None:
        """Steps as graphs from here on. What the optimizer reads at each step has to be on the device."""
        run = self._run
        run.graphs = StepGraphs(
            self._compute,
            stages=self.cohort.stages,
            peers=len(self.cohort.peers) - self.cohort.shadows,  # a shadow follows its peer's part of the plan
            device=self.device,
        )
        for group in run.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
            if "capturable" in group:  # AdamW counts its steps
                group["capturable"] = True

    def _set_rate(self, rate: float) -> None:
        run = self._run
        run.rate = rate
        for group in run.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # a captured optimizer reads it on the device
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _compute(self, batch: Batch, plan: MixPlan, progress: float | Tensor) -> Computed:
        """All that a step does on the device."""
        if self.update == "joint":
            return self._learn(batch, plan, progress, None)
        terms: dict[str, Tensor] = {}
        for peer in self.cohort.learners:
            now, logits, targets = self._learn(batch, plan, progress, peer)
            for name, value in now.items():  # each peer's own number, from when it was its turn
                own = torch.arange(len(value), device=value.device) == peer
                terms[name] = torch.where(own, value.detach(), terms.get(name, value.detach()))
        return terms, logits, targets

    def _learn(self, batch: Batch, plan: MixPlan, progress: float | Tensor, peer: int | None) -> Computed:
        """Forward, backward and an update of all peers, or of one."""
        run = self._run

        def work(cohort: Cohort, loss: nn.Module) -> Step:
            return follow(cohort, loss, batch, plan, progress)

        try:
            with self.cohort.learning(peer):
                terms, watched, logits, targets = run.module(work)
        except ValueError as error:  # how parts say that they do not fit together
            raise TrainingError(str(error)) from error
        if self.device.type == "cpu":  # elsewhere reading would stall the device: the end of the epoch tells
            self._check_finite({name: term.tolist() for name, term in terms.items()}, f"step {run.step + 1}")
        run.optimizer.zero_grad(set_to_none=True)
        objective = terms if peer is None else {name: term[peer] for name, term in terms.items()}
        self.fabric.backward(total(objective))
        if self.optim.clip is not None:
            for group in run.optimizer.param_groups:
                torch.nn.utils.clip_grad_norm_(group["params"], self.optim.clip)
        run.optimizer.step()
        return {**terms, **watched}, logits, targets

    def _share(self, batch: Batch) -> Batch:
        """This process's part of a batch: every world-size-th sample, so that all parts differ by one at the most."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        if world == 1:
            return batch
        companions = None if batch.companions is None else batch.companions[rank::world]
        views = None if batch.views is None else tuple(view[rank::world] for view in batch.views)
        return Batch(batch.images[rank::world], batch.labels[rank::world], companions, views)

    def _evaluate(self, val: Iterable[Batch]) -> Report:
        return evaluate(self.cohort, val, names=self.names, precision=self.fabric.autocast())

    def _check_finite(self, terms: dict[str, list[float]], when: str) -> None:
        for name, values in terms.items():
            for peer, value in zip(self.names, values, strict=False):
                if not math.isfinite(value):
                    raise TrainingError(
                        f"the term '{name}' of peer {peer} became {value} in {when} "
                        f"(learning rate {self._run.rate:g}): "
                        "a lower optim.lr, optim.warmup=0.05 or optim.clip=5 usually helps"
                    )

    def _keep(self, epoch: int, report: Report | None, chosen_by_validation: bool) -> None:
        run, last = self._run, epoch == self.epochs
        learning = list(self.cohort.learners)
        if deployable := getattr(self.loss, "deployable", None):
            learning = list(deployable(len(self.cohort.peers)))
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
            run.best = found
            # LATEST moves last: a run that dies in between comes by here again.
            self._save("BEST", "LATEST", whole=True)
        elif last or epoch % self.checkpoint_every == 0:
            self._save("LATEST", whole=True)

    def _save(self, *pointers: str, whole: bool) -> Path | None:
        if self.checkpoints is None:
            return None
        run, path = self._run, None
        if self.fabric.is_global_zero:
            state = {
                "step": run.step,
                "optimizer": run.optimizer.state_dict(),
                "sums": run.sums.state(),
                "best": None if run.best is None else vars(run.best),
            }
            facts = {"torch": str(torch.__version__), "world_size": self.fabric.world_size, **self.facts}
            path = checkpoint.write(self.checkpoints, run.step, run.line, state, facts, whole=whole)
            for pointer in pointers:
                checkpoint.point(self.checkpoints, pointer, path)
            checkpoint.prune(self.checkpoints)
        self.fabric.barrier()
        return path

    def _resume(self) -> None:
        found = checkpoint.read_latest(self.checkpoints) if self.checkpoints else None
        if found is None:
            return
        for name, value in self.facts.items():
            if found.manifest.get(name) != value:
                raise checkpoint.CheckpointError(
                    f"{found.path} was written with {name} {found.manifest.get(name)}, this run has {value}"
                )
        run, state = self._run, found.state
        found.load_weights(run.line)
        run.optimizer.load_state_dict(state["optimizer"])
        run.sums.load(state["sums"], self.device)
        run.step = state["step"]
        run.best = None if state["best"] is None else Best(**state["best"])

    def _stop_if_asked(self) -> None:
        number = self._watch.number
        if self.fabric.world_size > 1:  # all processes stop at the same step
            number = int(self.fabric.all_reduce(torch.tensor(float(number)), reduce_op="max"))
        if number:
            raise Interrupted(number, self._run.step, self._save("LATEST", whole=False))


@dataclass
class _Run:
    """What changes while a trainer runs, apart from the weights."""

    line: _Line
    module: Any
    optimizer: Any
    sums: Sums
    step: int
    best: Best | None
    rate: float = 0.0
    graphs: StepGraphs | None = None
