"""Full evaluation: accuracy, calibration, diversity, robustness and localization.

:func:`metamixer.evaluation.evaluate.evaluate` is the quick evaluation after each epoch; this one keeps all predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.eval_mode import evaluating
from metamixer.core.labels import class_indices
from metamixer.core.types import Batch, on_device_of
from metamixer.evaluation.localization.localize import Localization
from metamixer.evaluation.networks import Panel
from metamixer.evaluation.report import Diversity, Report
from metamixer.evaluation.robustness.robustness import Robustness
from metamixer.metrics import diversity
from metamixer.metrics.network_scores import score


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of networks for N images, on the CPU.

    Args:
        logits: ``(P, N, C)`` logits of the peers, at least float32.
        labels: ``(N,)``.
        deployed: ``(N, C)`` logits of the deployed network, if any.
    """

    logits: Tensor
    labels: Tensor
    deployed: Tensor | None = None

    @cached_property
    def log_probabilities(self) -> Tensor:
        """Log-probabilities ``(P, N, C)`` of the peers, float64."""
        return self.logits.double().log_softmax(-1)

    @property
    def rows(self) -> list[Tensor]:
        """``(N, C)`` logits of each peer, of the ensemble (the logs of the mean probability), and of ``deployed``."""
        mean = diversity.ensemble(self.log_probabilities)
        return [*self.logits, mean, *(() if self.deployed is None else (self.deployed,))]


def predict_all(
    cohort: Cohort,
    batches: Iterable[Batch],
    progress: Callable[[int], None] | None = None,
    *,
    deployed: nn.Module | None = None,
    precision: AbstractContextManager[Any] | None = None,
) -> Predictions:
    """Run every peer on ``batches`` in evaluation mode; the modes are restored afterwards.

    Args:
        cohort: the peers.
        batches: batches of normalised images ``(B, C, ...)`` and labels: :class:`Batch`, or pairs as from a
            ``DataLoader``.
        progress: called as progress(done), in images.
        deployed: the deployed network, if it is to be run too.
        precision: an autocast context, entered for every batch.

    Raises:
        ValueError: there are no images.
    """
    panel = Panel.of(cohort, deployed=deployed)
    peers, others, labels, done = [], [], [], 0
    with evaluating(*panel.modules):
        for batch in on_device_of(cohort, batches):
            with precision or nullcontext():
                logits, other = panel.logits(batch.images)
            peers.append(logits.cpu())
            others += [] if other is None else [other.cpu()]
            labels.append(class_indices(batch.labels).cpu())
            done += len(batch)
            if progress:
                progress(done)
    if not done:
        raise ValueError("there are no images to evaluate on")
    return Predictions(torch.cat(peers, 1), torch.cat(labels), torch.cat(others) if others else None)


Assessment = Report
"""A report with all its parts."""


def assess(
    cohort: Cohort,
    batches: Iterable[Batch],
    *,
    validation: Iterable[Batch] | None = None,
    names: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    deployed: nn.Module | None = None,
    precision: AbstractContextManager[Any] | None = None,
    progress: Callable[[str, int], None] | None = None,
    split: Literal["test", "val"] = "test",
    checkpoint: Literal["last", "best"] = "last",
    robustness: Robustness | None = None,
    localization: Localization | None = None,
) -> Report:
    """Compute the metrics of every peer, of the ensemble, and of the deployed network, on ``batches``.

    Args:
        cohort: the peers.
        batches: batches of normalised images ``(B, C, ...)`` and labels.
        validation: held-out batches to fit the temperatures on. If it is the same object as ``batches``, they are
            fitted on the reported images, which is optimistically biased.
        names: names of the peers; None: their indices.
        classes: names of the classes; None: their indices.
        deployed: the deployed network, if it is to be reported too.
        precision: an autocast context.
        progress: called as progress(stage, done), where the stage is ``"images"`` or ``"validation images"``.
        split, checkpoint, robustness, localization: parts of the report that are given, not measured here.

    Raises:
        ValueError: there are no images, or the number of names or classes is wrong.

    >>> peers = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)) for _ in range(2)]
    >>> batch = Batch(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    >>> [score.name for score in assess(Cohort(peers, stages=["1"]), [batch]).networks]
    ['0', '1', 'ensemble']
    """
    panel = Panel.of(cohort, names, deployed)

    def ask(images: Iterable[Batch], what: str) -> Predictions:
        of_stage = None if progress is None else partial(progress, what)
        return predict_all(cohort, images, of_stage, deployed=deployed, precision=precision)

    found = ask(batches, "images")
    held = None if validation is None else found if validation is batches else ask(validation, "validation images")
    count = found.logits.shape[-1]
    if classes is not None and len(classes) != count:
        raise ValueError(f"{len(classes)} names for {count} classes; expected one for each")
    fits = [None] * len(panel.names) if held is None else [(row, held.labels) for row in held.rows]
    networks = tuple(
        score(name, kind, row, found.labels, fit)
        for name, kind, row, fit in zip(panel.names, panel.kinds, found.rows, fits, strict=True)
    )
    logs = found.log_probabilities
    peers, ensemble = networks[: len(logs)], networks[len(logs)]
    return Report(
        peers,
        ensemble,
        agreement=diversity.agreement(logs),
        images=len(found.labels),
        deployed=None if deployed is None else networks[-1],
        split=split,
        checkpoint=checkpoint,
        classes=tuple(classes or map(str, range(count))),
        diversity=Diversity(
            pairwise_agreement=tuple(map(tuple, diversity.pairwise_agreement(logs).tolist())),
            pairwise_kl=tuple(map(tuple, diversity.pairwise_kl(logs).tolist())),
            disagreement=diversity.disagreement(logs),
            ensemble_gain=ensemble.accuracy - sum(each.accuracy for each in peers) / len(peers),
        ),
        robustness=robustness,
        localization=localization,
    )
