"""Adversarial-based mutual learning network (Zhang, Lu, Gong, Luo, Liu, ECCV 2020).

Peers also learn from each other's intermediate features: discriminators align the features block by block, and the
features of each block are matched to the *final* features of the other peer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamixer.core.ranges import Positive, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.discriminator import Discriminator, least_squares
from metamixer.losses.functional import (
    layer,
    learning,
    mutual_divergence,
    require,
    same_size,
    single,
    soft_cross_entropy,
)


@dataclass(eq=False, repr=False)
class AMLN(Loss):
    """Peers align features stage by stage adversarially, and match intermediate to final features.

    ``CE(z_i, y) + weight * T^2 KL(p_j || p_i) + adversarial * mean_k (1 - D_ik(F_ik))^2 + align * L2_i``.

    At the end of every stage k a discriminator minimises ``(1 - D_ik(F_jk))^2 + D_ik(F_ik)^2``: the features F of the
    previous peer in the cycle, j = i - 1, are real, its own are fake. At every stage but the last, an alignment
    container A maps the features to those of the last stage of peer j: ``L2_i = mean_k mean (A_ik(F_ik) - F_jK)^2``,
    with the target detached. Stages in a shared trunk are left out of both. Logits are learned from all other peers, as
    in DML.

    From secondary sources we know the parts: discriminators after each block, containers from each block to the final
    features of the other peer with an L2 loss, and the divergence of the predictions. There is no public code, and the
    loss weights are not published. Ours: all loss weights, the temperature, the least-squares game (as in AFD), one
    backward pass for both players, the cycle for more than two peers, and the container: a 3x3 convolution, ReLU and a
    1x1 convolution on features average-pooled to the size of their target. If peers differ in channels, 1x1
    convolutions reduce them to the smallest number before a discriminator. These learn with their networks; those of
    frozen peers keep their initial weights.

    Args:
        temperature: T of both softmaxes.
        weight: weight of the divergence.
        adversarial: weight of the adversarial term of the networks.
        align: weight of the intermediate-to-final alignment.
        discriminator: weight of the loss of the discriminators, as in AFD.

    >>> same = Outputs(torch.zeros(2, 4, 10), stages=((torch.ones(4, 6, 4, 4), torch.ones(4, 8, 2, 2)),) * 2)
    >>> loss = AMLN()
    >>> loss.setup(same)
    >>> list(loss.containers), len(loss.discriminators)
    (['0-1', '1-1'], 4)
    """

    needs = ("stages",)

    temperature: Positive = 3.0
    weight: Weight = 1.0
    adversarial: Weight = 0.05
    align: Weight = 1.0
    discriminator: Weight = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transfers = nn.ModuleDict()
        self.discriminators = nn.ModuleDict()
        self.containers = nn.ModuleDict()
        self._made: object = None
        self._peers = 0

    def setup(self, outputs: Outputs) -> None:
        """Create the discriminators of every stage and the layers around them, unless they exist."""
        self._check(outputs)
        if outputs.peers < 2:
            raise ValueError("AMLN needs at least two peers")
        made = (
            [[(each.shape[1], each.ndim) for each in row] for row in outputs.maps],
            outputs.learners,
            outputs.shared,
        )
        if made == self._made:
            return
        self.transfers, self.discriminators, self.containers = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        *_, last = stages = range(outputs.shared, len(outputs.maps[0]))
        for stage in stages:
            features = [single(row[stage]) for row in outputs.maps]
            widths = [each.shape[1] for each in features]
            for peer, each in enumerate(features):
                if len(set(widths)) > 1:
                    transfer = layer(widths[peer], min(widths), each.ndim - 2)
                    self.transfers[_key(peer, stage)] = transfer.requires_grad_(peer in outputs.learners)
                if peer not in outputs.learners:
                    continue
                axes = same_size(features[peer - 1], each)[0].ndim - 2
                self.discriminators[_key(peer, stage)] = Discriminator(min(widths), axes)
                if stage != last:
                    final = outputs.maps[peer - 1][-1]
                    axes = same_size(each, single(final))[0].ndim - 2
                    self.containers[_key(peer, stage)] = nn.Sequential(
                        layer(widths[peer], final.shape[1], axes, size=3),
                        nn.ReLU(),
                        layer(final.shape[1], final.shape[1], axes),
                    )
        self.to(outputs.logits.device, single(outputs.maps[0][-1]).dtype)
        self._made, self._peers = made, outputs.peers

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Terms ``(P,)``: ``task``, ``distill`` in nats, ``adversarial`` and ``align`` (networks), ``discriminator``.

        Sets ``watched["discriminator_accuracy"]``, the mean over the stages; 1/2 is chance.
        """
        self._check(outputs)
        self.check_made(self._peers, outputs)
        found = [self._compare(outputs, peer) for peer in outputs.learners]
        telling, fooling, accuracy, gap = (torch.stack(column) for column in zip(*found, strict=True))
        self.watched = {"discriminator_accuracy": accuracy}
        distill = mutual_divergence(outputs.logits, self.temperature)
        return {
            "task": soft_cross_entropy(learning(outputs.logits, outputs), targets),
            "distill": self.weight * distill,
            "adversarial": self.adversarial * fooling,
            "align": self.align * gap,
            "discriminator": self.discriminator * telling,
        }

    def _compare(self, outputs: Outputs, peer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compare a peer with the previous one: loss of its discriminators, its adversarial loss, accuracy, gap."""
        games, gaps = [], []
        other = (peer - 1) % outputs.peers
        final = single(outputs.maps[other][-1]).detach()
        for stage in range(outputs.shared, len(outputs.maps[peer])):
            own, real = (self._transferred(outputs, each, stage) for each in (peer, other))
            games.append(least_squares(self.discriminators[_key(peer, stage)], *same_size(real, own)))
            if (key := _key(peer, stage)) in self.containers:
                features, wanted = same_size(single(outputs.maps[peer][stage]), final)
                gaps.append((single(self.containers[key](features)) - wanted).square().mean())
        telling, fooling, accuracy = (torch.stack(column) for column in zip(*games, strict=True))
        # A sum, because each discriminator has its own weights: how fast it learns must not depend on their number.
        gap = torch.stack(gaps).mean() if gaps else final.new_zeros(())
        return telling.sum(), fooling.mean(), accuracy.mean(), gap

    def _transferred(self, outputs: Outputs, peer: int, stage: int) -> Tensor:
        key, features = _key(peer, stage), single(outputs.maps[peer][stage])
        return self.transfers[key](features) if key in self.transfers else features

    def _check(self, outputs: Outputs) -> None:
        require(outputs, "AMLN", stages=outputs.shared + 1)


def _key(peer: int, stage: int) -> str:
    """The key of a module: stages are counted from 1, as in plans."""
    return f"{peer}-{stage + 1}"
