"""The distillation framework of Cut^nMix (Shen, Xu, Yang, Li, Guo, arXiv 2206.12370), in our interpretation.

We know only the abstract: the framework is "to enhance the distillation with feature level mutual learning and a
self-ensemble teacher". We know no formulas, weights or code of the authors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.core.ranges import Positive, Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.step_counter import StepCount
from metamixer.losses.functional import divergence, learning, mutual_divergence, ramp_up, require, soft_cross_entropy
from metamixer.losses.kd import softened_mean


@dataclass(eq=False, repr=False)
class CutnMixLoss(Loss):
    """Peers teach each other by logits and features; the ensemble of their averaged copies teaches all.

    All formulas and defaults are our interpretation of the abstract. ``L_i = CE(z_i, y) + r(t) (...)`` with

    - ``weight`` times the mean over j != i of ``T^2 KL(p_j || p_i)``;
    - ``feature_weight`` times the mean over j != i of ``||n(W_ij f_i) - n(f_j)||^2``: f_i is the input of the last
      linear layer of peer i, W_ij a learned projection to the width of f_j, and n scales to length 1;
    - ``ensemble_weight`` times ``T^2 KL(p_e || p_i)``: p_e is the mean of the softened probabilities of all shadows. A
      shadow is a copy of a peer whose weights are a moving average of those of the peer.

    All teachers are detached: p_j, f_j and p_e. The features of the teaching side are not projected: two learned
    projections could map all images to the same direction and teach nothing.

    Designed for the mixer ``cutnmix``; works with every mixer. We do not know the networks of the paper, nor which
    network it deploys; here a peer is deployed, not its average.

    Args:
        temperature: T of all softmaxes; 3, as in other online methods.
        weight: weight of mutual learning by logits.
        feature_weight: weight of mutual learning by features.
        ensemble_weight: weight of learning from the ensemble of the averages.
        decay: decay of the averages, ``shadow = decay * shadow + (1 - decay) * peer`` after every step. After step n it
            is at most 1 - 1 / n, which gives the plain mean of all steps at first.
        ramp_up: share of training over which all three weights rise to their full values; 80 of 300 epochs in other
            online methods.

    >>> outputs = Outputs(torch.zeros(4, 3, 10), features=tuple(torch.rand(4, 3, 8)), frozen=(2, 3), shadows=2)
    >>> loss = CutnMixLoss()
    >>> loss.setup(outputs)
    >>> terms = loss(outputs, torch.eye(10)[:3])
    >>> terms["distill"].tolist(), terms["ensemble"].tolist(), terms["feature"].shape
    ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], torch.Size([4]))
    """

    needs = ("features", "shadows")
    shadows = "average"

    temperature: Positive = 3.0
    weight: Weight = 1.0
    feature_weight: Weight = 1.0
    ensemble_weight: Weight = 1.0
    decay: Share = 0.999
    ramp_up: Share = 0.2667

    def __post_init__(self) -> None:
        super().__post_init__()
        self.projections = nn.ModuleDict()
        self.count = StepCount()

    def setup(self, outputs: Outputs) -> None:
        """Create a projection for every ordered pair of peers; keep those that fit."""
        require(outputs, "CutnMixLoss", features=True, shadows=True)
        widths = [features.shape[1] for features in outputs.features[: outputs.peers - outputs.shadows]]
        shapes = {f"{i}-{j}": (to, own) for i, own in enumerate(widths) for j, to in enumerate(widths) if j != i}
        here = {name.removesuffix(".weight"): tuple(each.shape) for name, each in self.projections.named_parameters()}
        if here != shapes:
            made = {name: nn.Linear(own, to, bias=False) for name, (to, own) in shapes.items()}
            self.projections = nn.ModuleDict(made).to(outputs.logits)

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task", "distill", "feature", "ensemble"}``, each ``(P,)``.

        Raises:
            ValueError: there are no features or no shadows, or :meth:`setup` was not called.
        """
        require(outputs, "CutnMixLoss", features=True, shadows=True)
        peers = outputs.peers - outputs.shadows
        if len(self.projections) != peers * (peers - 1):
            raise ValueError("CutnMixLoss has projections: loss.setup(outputs) makes them from one example")
        logits = learning(outputs.logits, outputs)
        ramp = ramp_up(progress, self.ramp_up)
        ensemble = softened_mean(outputs.logits[peers:], self.temperature)
        terms = {
            "task": soft_cross_entropy(logits, targets),
            "distill": ramp * (self.weight * mutual_divergence(logits, self.temperature)),
            "feature": ramp * (self.feature_weight * self._apart(outputs, peers)),
            "ensemble": ramp * (self.ensemble_weight * divergence(ensemble, logits, self.temperature)),
        }
        return terms

    def _apart(self, outputs: Outputs, peers: int) -> Tensor:
        """``(peers,)``: the mean over the other peers of the squared distance between directions, from 0 to 4."""
        own = [each.to(outputs.logits.dtype) for each in outputs.features[:peers]]
        goals = [F.normalize(each.detach(), dim=-1) for each in own]

        def distance(i: int, j: int) -> Tensor:
            projected = self.projections[f"{i}-{j}"](own[i]).to(goals[j].dtype)
            return (F.normalize(projected, dim=-1) - goals[j]).square().sum(-1).mean()

        rows = [[distance(i, j) for j in range(peers) if j != i] for i in range(peers)]
        return torch.stack([torch.stack(row).mean() if row else goals[0].new_zeros(()) for row in rows])

    def after_step(self, cohort: Any) -> None:
        """Update the averages; in the first steps they are the plain mean of all steps."""
        cohort.update_shadows(min(self.decay, 1 - 1 / self.count.add()))
