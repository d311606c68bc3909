"""Peers that do not teach each other: cross-entropy alone, the baseline."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from metamixer.core.types import Outputs, Terms
from metamixer.losses.functional import check_targets, learning, soft_cross_entropy, spread


class Independent(nn.Module):
    """Cross-entropy of each peer with the soft targets, in nats: plain training of P networks side by side."""

    needs: ClassVar[tuple[str, ...]] = ()

    def forward(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None = None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task": (P,)}``."""
        check_targets(outputs.logits, targets)
        return {"task": spread(soft_cross_entropy(learning(outputs.logits, outputs), targets), outputs)}
