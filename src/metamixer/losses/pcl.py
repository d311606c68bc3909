"""PCL: peer collaborative learning (Wu, Gong, AAAI 2021, arXiv 2006.04147).

Peers learn from two kinds of teachers that are made during training: a classifier over the features of all peers, and
the averages of the weights of the other peers over time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metamixer.core.ranges import Positive, Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.step_counter import StepCount
from metamixer.losses.functional import divergence, learning, ramp_up, require, single, soft_cross_entropy


@dataclass(eq=False, repr=False)
class PCL(Loss):
    """Peers learn from a classifier over all their features, and from averaged copies of the others.

    ``sum_i CE(z_i) + CE(z_e) + r sum_i T^2 KL(e || i) + r sum_i mean over j != i of T^2 KL(average_j || i)``.

    ``z_e`` is a linear layer over the concatenated features of the peers. Its cross-entropy trains that layer and,
    through the features, all peers. Otherwise the ablation of this term in the paper could not change anything; a
    re-implementation does the same. As teachers, the ensemble and the averages are detached. The averages are the
    shadows of the cohort: ``average = d * average + (1 - d) * peer`` after every step, ``d = min(1 - 1 / steps,
    decay)``. Here the statistics of batch norm are averaged and used as well; the re-implementation averages weights
    only, and its teachers use the statistics of the batch.

    In the paper the peers are branches on a trunk, and each sees its own augmentation; separate networks of any widths
    are accepted too. The cross-entropy of the ensemble is divided evenly over the peers.

    Args:
        temperature: T of the softmaxes of teachers and students; 3 in the paper (from secondary sources) and in the
            re-implementation.
        weight: weight of both distillation terms; 1 in the paper.
        decay: decay of the averages; 0.999 in the paper.
        ramp_up: share of training over which the weight r rises; 80 of 300 epochs in the paper.

    Raises:
        ValueError: the cohort has no shadows.

    >>> peers = torch.zeros(4, 2, 10)  # two that learn, and their shadows
    >>> outputs = Outputs(peers, features=(torch.ones(2, 8),) * 4, frozen=(2, 3), shadows=2)
    >>> loss = PCL()
    >>> loss.setup(outputs)
    >>> loss(outputs, torch.full((2, 10), 0.1))["distill_average"]
    tensor([0., 0., 0., 0.])
    """

    needs = ("features", "shadows", "views")
    shadows = "average"

    temperature: Positive = 3.0
    weight: Weight = 1.0
    decay: Share = 0.999
    ramp_up: Share = 0.2667

    def __post_init__(self) -> None:
        super().__post_init__()
        self.count = StepCount()
        self.classifier: nn.Linear | None = None

    def setup(self, outputs: Outputs) -> None:
        """Create the classifier of the ensemble over the features of all peers, unless the existing one fits."""
        require(outputs, "PCL", features=True, shadows=True)
        features = [outputs.features[index] for index in outputs.learners]
        width, classes = sum(each.shape[1] for each in features), outputs.logits.shape[-1]
        there = self.classifier
        if there is None or (there.in_features, there.out_features) != (width, classes):
            kind = single(features[0])
            self.classifier = nn.Linear(width, classes, device=kind.device, dtype=kind.dtype)

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, features ``P`` times ``(B, D_p)``, targets ``(B, C)`` -> four terms ``(P,)`` in nats.

        ``ensemble`` is the cross-entropy of the ensemble, ``distill_ensemble`` the divergence of the peers from it, and
        ``distill_average`` their divergence from the averages of the others.
        """
        require(outputs, "PCL", features=True, shadows=True)
        if self.classifier is None:
            raise ValueError("PCL has no classifier yet: call loss.setup(cohort(images)) before training")
        students = learning(outputs.logits, outputs)
        averages, peers = outputs.logits[outputs.peers - outputs.shadows :], len(students)
        ensemble = self.classifier(torch.cat([outputs.features[index] for index in outputs.learners], 1))[None]
        pairs = divergence(averages[None], students[:, None], self.temperature)  # [student, teacher]
        from_others = (pairs.sum(1) - pairs.diagonal()) / max(peers - 1, 1)
        weight = self.weight * ramp_up(progress, self.ramp_up)
        return {
            "task": soft_cross_entropy(students, targets),
            "ensemble": soft_cross_entropy(ensemble, targets).expand(peers) / peers,
            "distill_ensemble": weight * divergence(ensemble, students, self.temperature),
            "distill_average": weight * from_others,
        }

    def after_step(self, cohort: Any) -> None:
        """Update the averages: the plain mean of all steps at first, then an exponential moving average."""
        cohort.update_shadows(min(1 - 1 / self.count.add(), self.decay))

    def deployable(self, peers: int) -> range:
        """The averages: the second half of the cohort."""
        return range(peers // 2, peers)
