"""All figures of one network on one set of labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from metamixer.metrics.calibration import Reliability, cooled, fit_temperature, reliability
from metamixer.metrics.classification import accuracy, brier, confusion, nll, per_class, top_k

Kind = Literal["peer", "shadow", "frozen", "ensemble", "deployed"]


@dataclass(frozen=True)
class Calibrated:
    """What the temperature makes of the probabilities; it changes no answer. Units as in :class:`Figures`."""

    nll: float
    brier: float
    ece: float
    gap: float


@dataclass(frozen=True)
class Figures:
    """One network's figures.

    Args:
        name: as in tables.
        kind: what it is.
        accuracy: the share of right answers.
        top5: the share of images whose class is among the five likeliest; None with fewer than six classes.
        nll: mean negative log-likelihood in nats.
        brier: Brier score, summed over the classes, in [0, 2].
        ece: expected calibration error with 15 bins, a share.
        gap: mean confidence - accuracy: above 0 is overconfident.
        temperature: fitted on validation images; None where there were none.
        calibrated: the figures at that temperature.
        per_class: accuracy on the images of each class; None for a class without images.
        confusion: counts, a row for each true class.
        reliability: the bins of the ECE.
    """

    name: str
    kind: Kind
    accuracy: float
    top5: float | None
    nll: float
    brier: float
    ece: float
    gap: float
    temperature: float | None
    calibrated: Calibrated | None
    per_class: tuple[float | None, ...]
    confusion: tuple[tuple[int, ...], ...]
    reliability: Reliability

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        found = dict(vars(self))
        found["calibrated"] = None if self.calibrated is None else dict(vars(self.calibrated))
        found["per_class"] = list(self.per_class)
        found["confusion"] = [list(row) for row in self.confusion]
        found["reliability"] = self.reliability.as_dict()
        return found


def figures(
    name: str, kind: Kind, logits: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor] | None = None
) -> Figures:
    """Count: ``(N, C)`` logits and ``(N,)`` labels.

    Args:
        name, kind: of the network.
        logits: before or after a log-softmax; of an ensemble the logs of the mean probabilities.
        labels: the right classes.
        validation: logits ``(M, C)`` and labels ``(M,)`` to fit the temperature on.
    """
    logs = cooled(logits, 1.0)
    bins = reliability(logs, labels)
    temperature, calibrated = None, None
    if validation is not None and validation[0].isfinite().all():  # a network that diverged has no temperature
        temperature = fit_temperature(*validation)
        mended = cooled(logits, temperature)
        again = reliability(mended, labels)
        calibrated = Calibrated(nll(mended, labels), brier(mended, labels), again.ece, again.gap)
    return Figures(
        name=name,
        kind=kind,
        accuracy=accuracy(logs, labels),
        top5=top_k(logs, labels),
        nll=nll(logs, labels),
        brier=brier(logs, labels),
        ece=bins.ece,
        gap=bins.gap,
        temperature=temperature,
        calibrated=calibrated,
        per_class=tuple(per_class(logs, labels)),
        confusion=tuple(tuple(row) for row in confusion(logs, labels).tolist()),
        reliability=bins,
    )
