"""The settings of the training loop: one frozen value, which the recipe's ``train`` section extends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from metamixer.core.ranges import Count, Positive, check_fields
from metamixer.training.class_weights import ClassWeights

Precision = Literal["32", "bf16", "16"]
HALF = {"bf16": torch.bfloat16, "16": torch.float16}
"""What is computed in by autocast."""
Update = Literal["joint", "alternating"]
OnNonfinite = Literal["stop", "skip", "backoff"]


@dataclass(frozen=True)
class RunInfo:
    """Information that a training loop passes on without using it.

    Args:
        facts: for the checkpoints' manifests, such as a hash of the recipe: a run is resumed with the same ones only.
        notes: for callbacks, at the start.
        classes: how many there are, so that networks with other outputs are refused; None: not known.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    classes: int | None = None


@dataclass(frozen=True)
class TrainSettings:
    """The settings of the training loop.

    Args:
        epochs: how many times the training images are seen.
        seed: random seed of training, the networks' dropout included, and of the initial weights.
        precision: ``32``; ``bf16`` (autocast), about twice as fast where the processor has it; or ``16`` (autocast in
            float16 with gradient scaling), for GPUs without bf16.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: processes on this machine.
        num_nodes: machines. Under torchrun, devices and num_nodes are what it started.
        peer_groups: groups of processes that the peers are divided among, so that a device holds its own peers alone:
            outputs travel and no weights. Inside of a group each process has its share of every batch. 1: every process
            has all peers.
        timeout: minutes after which a process that does not answer is given up.
        micro_batches: parts that a batch is computed in, one after the other, where it does not fit into memory.
        mixing_groups: samples are mixed with partners of their own of so many interleaved parts of a batch. None: as
            many as there are shares and micro-batches, whose samples cannot meet. A run of one process with the number
            of another one's shares times its micro-batches repeats it.
        on_nonfinite: what follows a loss or gradient that is infinite or NaN: ``stop``, ``skip`` the step, or
            ``backoff``: skip it and halve the learning rate for good. More than ten in a row always stop.
        update: ``joint``: all peers learn from one forward pass. ``alternating``: one after the other, each from what
            the others predict after their own update (Algorithm 1 of arXiv 1706.00384); P forward passes of each.
        select_small_loss: for wrong labels, with every loss: the share of each batch, of the largest cross-entropies,
            that is left out (``metamixer.training.small_loss``), of each part and each process by itself; 0: none.
        select_small_loss_ramp: the share of training over which that share rises from 0.
        label_smoothing: the share of every target, as mixed, that is spread over all classes (arXiv 1512.00567).
        class_weights: weights of the classes in every cross-entropy: ``none``; ``balanced``: in inverse proportion to
            the training images of a class; ``effective``: by their effective number (arXiv 1901.05555).
        class_weights_beta: beta of ``effective``.
        ema: decay of an exponential moving average of every peer's weights, such as 0.999: the averaged peers are
            validated, evaluated and deployed; None: the peers as they learn.
        patience: stop early, after so many epochs in which validation accuracy was not better (equal accuracy: negative
            log-likelihood); the schedule is that of all epochs. None: train them all.
        strength_target: for mixers with ``strength: auto``: the overfitting to allow at the end of training. After the
            share t of it strength rises if overfitting is surely above ``t * strength_target``, falls if it is below.
        strength_rise: the share of training in which that strength can rise from 0 to 1.
        continued: after which epochs the learning-rate schedule started anew, because a run that had ended with so many
            was given more; ``metamixer train --resume RUN --epochs N`` sets it.
        checkpoint_every: epochs between checkpoints. One is also written at the end and when a signal comes.
        validate_every: epochs between validations; the last epoch always ends with one.

    Raises:
        ValueError: a setting is out of its range.
    """

    epochs: Count = 100
    seed: Annotated[int, Field(ge=0)] = 0
    precision: Precision = "32"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: Count = 1
    num_nodes: Count = 1
    peer_groups: Count = 1
    timeout: Positive = 10.0
    micro_batches: Count = 1
    mixing_groups: Count | None = None
    on_nonfinite: OnNonfinite = "stop"
    update: Update = "joint"
    select_small_loss: Annotated[float, Field(ge=0, lt=1, json_schema_extra={"neutral": 0.0})] = 0.0
    select_small_loss_ramp: Annotated[float, Field(ge=0, le=1, json_schema_extra={"neutral": 0.05})] = 0.05
    label_smoothing: Annotated[float, Field(ge=0, lt=1, json_schema_extra={"neutral": 0.0})] = 0.0
    class_weights: Annotated[ClassWeights, Field(json_schema_extra={"neutral": "none"})] = "none"
    class_weights_beta: Annotated[float, Field(ge=0, lt=1, json_schema_extra={"neutral": 0.999})] = 0.999
    ema: Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Field(json_schema_extra={"neutral": None})] = None
    patience: Annotated[Count | None, Field(json_schema_extra={"neutral": None})] = None
    strength_target: Annotated[float, Field(ge=0, le=1, json_schema_extra={"neutral": 0.4})] = 0.4
    strength_rise: Annotated[float, Field(gt=0, le=1, json_schema_extra={"neutral": 0.1})] = 0.1
    continued: Annotated[tuple[Count, ...], Field(json_schema_extra={"neutral": []})] = ()
    checkpoint_every: Count = 1
    validate_every: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)
        rising = (*self.continued, self.epochs)
        if any(one >= other for one, other in pairwise(rising)):
            raise ValueError(f"continued={self.continued}: accepted are rising numbers below epochs={self.epochs}")

    def schedule(self, epochs_done: float) -> float:
        """The share of the learning-rate schedule that is done.

        >>> TrainSettings(epochs=10).schedule(5), TrainSettings(epochs=10, continued=(5,)).schedule(5)
        (0.5, 0.0)
        """
        start = max((epoch for epoch in self.continued if epoch <= epochs_done), default=0)
        end = min((epoch for epoch in self.continued if epoch > epochs_done), default=self.epochs)
        return (epochs_done - start) / (end - start)
