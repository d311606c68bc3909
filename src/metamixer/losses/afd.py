"""Feature-map-level online adversarial knowledge distillation (Chung, Park, Kim, Kwak, ICML 2020, arXiv 2002.01775).

Peers learn each other's predictions by a divergence, and the *distribution* of each other's feature maps by a game: a
discriminator distinguishes the maps of a peer from those of another, and the peer learns to fool it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamixer.core.ranges import Count, Positive, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.discriminator import Discriminator, least_squares
from metamixer.losses.functional import (
    divergence,
    layer,
    learning,
    mutual_divergence,
    require,
    same_size,
    single,
    soft_cross_entropy,
)


@dataclass(eq=False, repr=False)
class AFD(Loss):
    """Peers learn each other's predictions and, adversarially, the distribution of each other's feature maps.

    ``L_i = CE(z_i, y) + weight * T^2 KL(p_j || p_i) + adversarial * (1 - D_i(T_i(G_i)))^2`` with j the peer before i.

    ``D_i`` minimises ``(1 - D_i(T_j(G_j)))^2 + D_i(T_i(G_i))^2``: the maps of the other peer are real, its own are
    fake. G are the features of the last stage, T transfer layers (1x1 convolutions) to a common width. More than two
    peers form a cycle, 1 -> 2 -> ... -> P -> 1, with one discriminator each; logits are learned from all other peers,
    as in DML.

    The formulas are from two independent summaries of the paper, which has no official code. The paper makes two
    updates per step, with Adam for the features at a much lower learning rate (2e-5, from memory) than for the logits.
    Here one backward pass computes the gradients of both players. The lower rate is replaced by the weight
    ``adversarial`` for the networks and ``discriminator`` for the discriminators. Transfer layers learn with their
    networks; those of frozen peers keep their initial weights. Before D, maps are average-pooled to the smaller of two
    sizes, or to vectors if their numbers of axes differ.

    Args:
        temperature: T of both softmaxes (3, from memory).
        weight: weight of the divergence; 1 in the paper.
        adversarial: weight of the adversarial term of the networks. Ours: for a network of n weights, a step of Adam
            has a length of up to 2e-5 sqrt(n), 0.014 for a ResNet-32. SGD with learning rate 0.1 and momentum 0.9 takes
            a step of about the norm of the gradient, which is of the order of 1.
        discriminator: weight of the loss of the discriminators, which sets how fast they learn compared with the
            networks. Ours, from the same comparison of steps (0.004 for the 40,000 weights of a discriminator).
        width: channels after the transfer layers; None: the smallest number of channels of any peer (ours).
        cyclic_logits: learn logits from the previous peer in the cycle only. No difference with two peers.

    >>> same = Outputs(torch.zeros(2, 4, 10), stages=((torch.ones(4, 8, 2, 2),),) * 2)
    >>> loss = AFD()
    >>> loss.setup(same)
    >>> loss(same, torch.full((4, 10), 0.1))["distill"]
    tensor([0., 0.])
    """

    needs = ("stages",)

    temperature: Positive = 3.0
    weight: Weight = 1.0
    adversarial: Weight = 0.05
    discriminator: Weight = 0.01
    width: Count | None = None
    cyclic_logits: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.transfers = nn.ModuleList()
        self.discriminators = nn.ModuleDict()
        self._made: object = None

    def setup(self, outputs: Outputs) -> None:
        """Create a transfer layer for each peer and a discriminator for each learner, unless they exist."""
        require(outputs, "AFD", stages=1)
        if outputs.peers < 2:
            raise ValueError("AFD needs at least two peers")
        maps = [single(stages[-1]) for stages in outputs.maps]
        made = [(each.shape[1], each.ndim) for each in maps], outputs.learners
        if made == self._made:
            return
        width = self.width or min(each.shape[1] for each in maps)
        self.transfers = nn.ModuleList(layer(each.shape[1], width, each.ndim - 2) for each in maps)
        for peer in outputs.frozen:
            self.transfers[peer].requires_grad_(False)
        self.discriminators = nn.ModuleDict(
            {
                str(peer): Discriminator(width, axes=same_size(maps[peer - 1], maps[peer])[0].ndim - 2)
                for peer in outputs.learners
            }
        )
        self.to(maps[0].device, maps[0].dtype)
        self._made = made

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Terms ``(P,)``: ``task`` and ``distill`` in nats, ``adversarial`` (the networks) and ``discriminator``.

        Sets ``watched["discriminator_accuracy"]``: 1/2 is chance; near 1 the networks cannot fool the discriminator.
        """
        require(outputs, "AFD", stages=1)
        self.check_made(len(self.transfers), outputs)
        maps = [transfer(single(stages[-1])) for transfer, stages in zip(self.transfers, outputs.maps, strict=True)]
        games = [
            # The previous peer in the cycle is real; for the first peer that is the last one.
            least_squares(self.discriminators[str(peer)], *same_size(maps[peer - 1], maps[peer]))
            for peer in outputs.learners
        ]
        telling, fooling, accuracy = (torch.stack(column) for column in zip(*games, strict=True))
        self.watched = {"discriminator_accuracy": accuracy}
        distill = (
            divergence(outputs.logits.roll(1, 0), outputs.logits, self.temperature)
            if self.cyclic_logits
            else mutual_divergence(outputs.logits, self.temperature)
        )
        return {
            "task": soft_cross_entropy(learning(outputs.logits, outputs), targets),
            "distill": self.weight * distill,
            "adversarial": self.adversarial * fooling,
            "discriminator": self.discriminator * telling,
        }
