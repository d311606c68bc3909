"""The settings of the training loop, which the ``train`` section of recipes extends."""

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
"""The data types of autocast."""
Update = Literal["joint", "alternating"]
OnNonfinite = Literal["stop", "skip", "backoff"]


@dataclass(frozen=True)
class RunInfo:
    """Information about a run for checkpoints, callbacks and checks.

    Args:
        facts: entries of checkpoint manifests, such as a hash of the recipe; they must be equal when a run is resumed.
        notes: notes for callbacks at the start.
        classes: number of classes; networks with another number of outputs are refused. None: unknown.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    classes: int | None = None


@dataclass(frozen=True)
class TrainSettings:
    """The settings of the training loop.

    Args:
        epochs: number of passes over the training images.
        seed: random seed of training, including dropout, and of the initial weights.
        precision: ``32``; ``bf16`` (autocast), about twice as fast with hardware support; or ``16`` (autocast in
            float16 with gradient scaling), for GPUs without bf16.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        devices: number of processes on this machine.
        num_nodes: number of machines. Under torchrun, devices and num_nodes are those that it started.
        peer_groups: number of groups of processes among which the peers are divided, so that a device only holds its
            own peers; groups exchange outputs, not weights. Each process of a group has its share of every batch. 1:
            every process has all peers.
        timeout: minutes after which a process that does not respond is considered lost.
        micro_batches: number of parts in which a batch is computed, one after the other, to save memory.
        mixing_groups: number of interleaved parts of a batch whose samples are only mixed with each other. None: the
            number of processes that share a batch times the micro-batches, whose samples cannot be mixed. With that
            number one process reproduces a run of several.
        on_nonfinite: what to do if a loss or gradient is infinite or NaN: ``stop``, ``skip`` the step, or ``backoff``:
            skip it and halve the learning rate permanently. More than ten skipped steps in a row always stop the run.
        update: ``joint``: all peers learn from one forward pass. ``alternating``: one peer after the other, each from
            predictions of the others after their updates (Algorithm 1 of arXiv 1706.00384), with P forward passes.
        select_small_loss: share of each batch that is left out, that with the largest cross-entropies, for data with
            wrong labels and any loss (``metamixer.training.small_loss``); applied to each micro-batch and process
            separately. 0: none.
        select_small_loss_ramp: share of training over which that share rises from 0.
        label_smoothing: share of every mixed target that is spread over all classes (arXiv 1512.00567).
        class_weights: class weights in every cross-entropy: ``none``; ``balanced``: inversely proportional to the
            number of training images; ``effective``: by the effective number (arXiv 1901.05555).
        class_weights_beta: beta of ``effective``.
        ema: decay of an exponential moving average of the weights of every peer, such as 0.999; the averaged peers are
            validated, evaluated and deployed. None: no averages.
        patience: stop early after this number of epochs without a better validation accuracy (ties: negative
            log-likelihood); the schedule is still that of all epochs. None: no early stopping.
        strength_target: for mixers with ``strength: auto``: the overfitting to allow at the end of training. After the
            share t of training, strength rises if overfitting is significantly above ``t * strength_target``, and falls
            if it is significantly below.
        strength_rise: share of training in which that strength can rise from 0 to 1.
        strength_epochs: number of epochs from which that strength may reach 1. With a third of them or fewer it stays
            0, and in between its bound rises linearly. 1: no such bound.
        continued: epochs after which the learning-rate schedule was restarted, because a finished run was extended;
            set by ``metamixer train --resume RUN --epochs N``.
        checkpoint_every: number of epochs between checkpoints. One is also written at the end and after a signal.
        validate_every: number of epochs between validations; the last epoch is always validated.

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
    strength_epochs: Annotated[Count, Field(json_schema_extra={"neutral": 150})] = 150
    continued: Annotated[tuple[Count, ...], Field(json_schema_extra={"neutral": []})] = ()
    checkpoint_every: Count = 1
    validate_every: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)
        rising = (*self.continued, self.epochs)
        if any(one >= other for one, other in pairwise(rising)):
            raise ValueError(f"continued={self.continued}: accepted are rising numbers below epochs={self.epochs}")

    def schedule(self, epochs_done: float) -> float:
        """The share of the learning-rate schedule that is done after ``epochs_done`` epochs.

        >>> TrainSettings(epochs=10).schedule(5), TrainSettings(epochs=10, continued=(5,)).schedule(5)
        (0.5, 0.0)
        """
        start = max((epoch for epoch in self.continued if epoch <= epochs_done), default=0)
        end = min((epoch for epoch in self.continued if epoch > epochs_done), default=self.epochs)
        return (epochs_done - start) / (end - start)
