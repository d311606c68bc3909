"""Peers that do not teach each other: cross-entropy only, the baseline."""

from __future__ import annotations

from torch import Tensor

from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import learning, soft_cross_entropy


class Independent(Loss):
    """Cross-entropy of each peer with the soft targets, in nats: plain training of P networks."""

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,)}``."""
        return {"task": soft_cross_entropy(learning(outputs.logits, outputs), targets)}
