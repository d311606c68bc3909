"""A least-squares adversarial game over feature maps between each learner and the other peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from metamixer.core.types import Outputs
from metamixer.losses.components.discriminator import Discriminator, Game, least_squares
from metamixer.losses.components.pairs import means, others
from metamixer.losses.functional import layer

_TOO_GOOD = 0.9  # a discriminator with a higher accuracy pauses


def players(shapes: Sequence[tuple[int, int]], outputs: Outputs) -> tuple[nn.ModuleList, nn.ModuleDict]:
    """A layer to the smallest width for each peer, and a discriminator for each learner.

    Args:
        shapes: channels and spatial axes of the maps of each peer.
        outputs: for the roles of the peers; the layers of frozen peers have no loss and keep their initial weights.
    """
    least, axes = min(shapes)
    transfers = nn.ModuleList(nn.Identity() if width == least else layer(width, least, axes) for width, _ in shapes)
    for peer in outputs.frozen:
        transfers[peer].requires_grad_(False)
    return transfers, nn.ModuleDict({str(peer): Discriminator(least, axes, depth=3) for peer in outputs.learners})


def play(
    transfers: nn.ModuleList, discriminators: nn.ModuleDict, maps: Sequence[Tensor], outputs: Outputs
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of the networks, the losses of the discriminators, and their accuracies, ``(L,)`` each.

    Means over the other peers, whose maps are real. The loss of a discriminator is 0 while its accuracy is above 90 %.
    """
    moved = [transfer(each) for transfer, each in zip(transfers, maps, strict=True)]
    games: list[list[Game]] = []
    for i in outputs.learners:
        judge = cast(Discriminator, discriminators[str(i)])
        games.append([least_squares(judge, moved[j], moved[i]) for j in others(i, outputs)])
    fooling, telling, accuracy = (
        means([getattr(game, name) for game in row] for row in games)
        for name in ("generator", "discriminator", "accuracy")
    )
    return fooling, telling * (accuracy <= _TOO_GOOD), accuracy.detach()
