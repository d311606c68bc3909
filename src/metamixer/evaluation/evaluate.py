"""Accuracy and NLL of peers and ensemble on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from metamixer.cohort.cohort import Cohort
from metamixer.core.labels import class_indices
from metamixer.core.probabilities import log_mean
from metamixer.core.progress import watched
from metamixer.core.types import Batch, on_device_of
from metamixer.evaluation.networks import ENSEMBLE, Panel
from metamixer.evaluation.report import Report as Report
from metamixer.metrics.network_scores import Score as Score


@torch.no_grad()
def evaluate(
    cohort: Cohort,
    batches: Iterable[Batch],
    *,
    names: Iterable[str] | None = None,
    precision: AbstractContextManager[Any] | None = None,
    add: Callable[[Tensor], Tensor] | None = None,
) -> Report:
    """Run every peer on ``batches`` in evaluation mode and compute metrics. The mode of the cohort is restored.

    Args:
        cohort: the peers.
        batches: batches of normalised images ``(B, C, ...)`` and labels: :class:`Batch`, or pairs as from a
            ``DataLoader``.
        names: names of the peers; None: their indices.
        precision: an autocast context, entered for every batch.
        add: sums a tensor of counts over all processes, each of which evaluates other batches.

    Raises:
        ValueError: there are no images.
    """
    training = cohort.training
    cohort.eval()
    rows = len(cohort.peers) + 1
    images, with_more_than_five = 0, 0
    right, right5, nll = (torch.zeros(rows) for _ in range(3))
    agreed = torch.zeros(())
    try:
        for batch in on_device_of(cohort, watched(batches, "evaluating")):
            with precision or nullcontext():
                logits = cohort(batch.images).logits
            logs = logits.float().log_softmax(-1)
            scores = torch.cat([logs, log_mean(logs)[None]])
            labels = class_indices(batch.labels).expand(len(scores), -1)
            top = scores.topk(min(5, scores.shape[-1]), -1).indices == labels[..., None]
            images += len(batch)
            with_more_than_five += len(batch) * (scores.shape[-1] > 5)
            if right.device != scores.device:
                right, right5, nll, agreed = (each.to(scores.device) for each in (right, right5, nll, agreed))
            # Summed on the device, and read once at the end.
            right = right + top[..., 0].sum(-1)
            right5 = right5 + top.any(-1).sum(-1)
            nll = nll + F.nll_loss(scores.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).sum(-1)
            votes = logits.argmax(-1)
            agreed = agreed + (votes == votes[0]).all(0).sum()
    finally:
        cohort.train(training)
    counted = torch.cat([right, right5, nll, agreed[None], agreed.new_tensor([images, with_more_than_five])])
    if add is not None:
        counted = add(counted)
    right, right5, nll, rest = torch.split(counted, [rows, rows, rows, 3])
    agreement, images, with_more_than_five = rest[0], int(rest[1]), int(rest[2])
    if not images:
        raise ValueError("there are no images to evaluate on")
    titles = [*(names or map(str, range(len(cohort.peers)))), ENSEMBLE]
    columns = zip(titles, Panel.of(cohort).kinds, right.tolist(), right5.tolist(), nll.tolist(), strict=True)
    scores_of = [
        Score(name, r / images, r5 / images if with_more_than_five else None, n / images, kind)
        for name, kind, r, r5, n in columns
    ]
    return Report(tuple(scores_of[:-1]), scores_of[-1], float(agreement) / images, images)
