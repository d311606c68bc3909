"""A least-squares adversarial game over feature maps between each learner and the other peers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from metamixer.core.types import Outputs
from metamixer.losses.components.discriminator import Discriminator, Game, least_squares
from metamixer.losses.components.pairs import means, others
from metamixer.losses.functional import layer

_TOO_GOOD = 0.9  # a discriminator that is right more often waits for the peers


def players(shapes: Sequence[tuple[int, int]], outputs: Outputs) -> tuple[nn.ModuleList, nn.ModuleDict]:
    """Layers to the least width for each peer, and a discriminator for each that learns.

    Args:
        shapes: channels and spatial axes of each peer's maps.
        outputs: say who learns; the layers of frozen peers, without a term of their own, stay as they are drawn.
    """
    least, axes = min(shapes)
    transfers = nn.ModuleList(nn.Identity() if width == least else layer(width, least, axes) for width, _ in shapes)
    for peer in outputs.frozen:
        transfers[peer].requires_grad_(False)
    return transfers, nn.ModuleDict({str(peer): Discriminator(least, axes, depth=3) for peer in outputs.learners})


def play(
    transfers: nn.ModuleList, discriminators: nn.ModuleDict, maps: Sequence[Tensor], outputs: Outputs
) -> tuple[Tensor, Tensor, Tensor]:
    """What the networks minimise, what the discriminators do, and how often these are right, ``(L,)`` each.

    Means over the other peers, whose maps are real; a discriminator that is right in more than 90 % gets 0.
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
