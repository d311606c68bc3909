"""All that is to be known of a cohort on labelled images: how right, how sure, how different, how robust.

:func:`metamixer.evaluation.evaluate.evaluate` is the quick one for each epoch; this one keeps every prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.eval_mode import evaluating
from metamixer.core.types import Batch
from metamixer.evaluation.networks import Panel
from metamixer.metrics import diversity
from metamixer.metrics.network_scores import Figures, figures

FORMAT = "metamixer-evaluation-1"


@dataclass(frozen=True, eq=False)
class Predictions:
    """What networks said about N images, on the CPU.

    Args:
        logits: ``(P, N, C)`` of the peers, float32 at least.
        labels: ``(N,)``.
        deployed: ``(N, C)`` of one more network.
    """

    logits: Tensor
    labels: Tensor
    deployed: Tensor | None = None

    @cached_property
    def log_probabilities(self) -> Tensor:
        """``(P, N, C)`` float64."""
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
    """Run every peer over ``batches`` in evaluation mode; the modes are put back afterwards.

    Args:
        cohort: the peers.
        batches: of normalised images ``(B, C, ...)`` on the cohort's device, and labels.
        progress: is told how many images are done.
        deployed: one more network to ask.
        precision: an autocast context to compute in; re-entered for every batch.

    Raises:
        ValueError: there are no images.
    """
    panel = Panel.of(cohort, deployed=deployed)
    peers, others, labels, done = [], [], [], 0
    with evaluating(*panel.modules):
        for batch in batches:
            with precision or nullcontext():
                logits, other = panel.logits(batch.images)
            peers.append(logits.cpu())
            others += [] if other is None else [other.cpu()]
            labels.append(batch.labels.cpu())
            done += len(batch)
            if progress:
                progress(done)
    if not done:
        raise ValueError("there are no images to evaluate on")
    return Predictions(torch.cat(peers, 1), torch.cat(labels), torch.cat(others) if others else None)


@dataclass(frozen=True)
class Assessment:
    """What is known of a cohort.

    Args:
        split: the images, ``test`` or ``val``.
        checkpoint: the weights, ``last`` or ``best``.
        images: how many.
        classes: their names.
        networks: every peer, the ensemble, and the deployed network where there is one.
        peers: how they differ: ``agreement`` of all, ``pairwise_agreement`` and ``pairwise_kl`` (nats) as P x P lists,
            mean pairwise ``disagreement``, ``ensemble_gain`` (accuracy of the ensemble - mean of the peers).
        robustness: accuracies under corruptions and attacks, where they were asked for.
        localization: how well heat maps find objects, where it was asked for.
    """

    split: str
    checkpoint: str
    images: int
    classes: tuple[str, ...]
    networks: tuple[Figures, ...]
    peers: dict[str, Any]
    robustness: dict[str, Any] | None = None
    localization: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """What ``evaluation.json`` holds: plain numbers and lists; None for what is no number."""
        found: dict[str, Any] = _plain(
            {
                "format": FORMAT,
                **vars(self),
                "classes": list(self.classes),
                "networks": [each.as_dict() for each in self.networks],
            }
        )
        return found


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
    split: str = "test",
    checkpoint: str = "last",
    robustness: dict[str, Any] | None = None,
    localization: dict[str, Any] | None = None,
) -> Assessment:
    """Figures of every peer, of the ensemble, and of the deployed network, on ``batches``.

    Args:
        cohort: the peers.
        batches: of normalised images ``(B, C, ...)`` on the cohort's device, and labels.
        validation: held-out batches that the temperatures are fitted on. The same object as ``batches`` fits them on
            the images that are reported, which flatters what comes out.
        names: of the peers; numbers without.
        classes: their names; numbers without.
        deployed: one more network to report on.
        precision: an autocast context to compute in.
        progress: is told which images (``"images"``, ``"validation images"``) and how many are done.
        split, checkpoint, robustness, localization: are passed on.

    Raises:
        ValueError: there are no images, or names or classes do not fit.

    >>> peers = [nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)) for _ in range(2)]
    >>> batch = Batch(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]))
    >>> [figures.name for figures in assess(Cohort(peers, stages=["1"]), [batch]).networks]
    ['0', '1', 'ensemble']
    """
    panel = Panel.of(cohort, names, deployed)

    def ask(images: Iterable[Batch], what: str) -> Predictions:
        told = None if progress is None else (lambda done: progress(what, done))
        return predict_all(cohort, images, told, deployed=deployed, precision=precision)

    found = ask(batches, "images")
    held = None if validation is None else found if validation is batches else ask(validation, "validation images")
    count = found.logits.shape[-1]
    if classes is not None and len(classes) != count:
        raise ValueError(f"{len(classes)} names for {count} classes; one for each would work")
    fits = [None] * len(panel.names) if held is None else [(row, held.labels) for row in held.rows]
    networks = tuple(
        figures(name, kind, row, found.labels, fit)
        for name, kind, row, fit in zip(panel.names, panel.kinds, found.rows, fits, strict=True)
    )
    logs = found.log_probabilities
    own = [each.accuracy for each in networks[: len(logs)]]
    return Assessment(
        split=split,
        checkpoint=checkpoint,
        images=len(found.labels),
        classes=tuple(classes or map(str, range(count))),
        networks=networks,
        peers={
            "agreement": diversity.agreement(logs),
            "pairwise_agreement": diversity.pairwise_agreement(logs).tolist(),
            "pairwise_kl": diversity.pairwise_kl(logs).tolist(),
            "disagreement": diversity.disagreement(logs),
            "ensemble_gain": networks[len(logs)].accuracy - sum(own) / len(own),
        },
        robustness=robustness,
        localization=localization,
    )


def _plain(value: Any) -> Any:
    """JSON has no word for what is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
