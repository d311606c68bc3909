"""Components of adversarial methods: a discriminator that shares the optimizer of the networks.

Two players with one backward pass: the discriminator's loss sees features without their graph, the networks' loss sees
a discriminator whose weights are constants. So each gradient reaches one player, and the sum of the two losses has
the gradients of the simultaneous two-player update. (Gradient reversal has them only where the game is zero-sum,
which least-squares GANs are not.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metamixer.core.types import pooled
from metamixer.losses.functional import layer, single


class Discriminator(nn.Module):
    """Tells whose features it sees: ``(B, C, ...) -> (B,)``, near 1 for features classified as real.

    Convolutions of stride 2 over feature maps of any number of axes, linear layers over vectors. No batch
    normalisation: it would see whether a batch is real or fake from the statistics alone.

    Args:
        channels: C.
        axes: spatial axes, 0 to 3.
        width: channels inside.
        depth: layers before the last one.
    """

    def __init__(self, channels: int, axes: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(depth):
            into = channels if index == 0 else width
            layers += [layer(into, width, axes, size=3, stride=2), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(width if depth else channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, ...) -> (B,)``."""
        hidden = features
        for part in self.body:
            if hidden.ndim > 2 and hidden.shape[-1] == 1 and not isinstance(part, nn.LeakyReLU):
                # The same numbers. Without it, oneDNN (torch 2.13, AVX-512, bf16) returns memory that nobody wrote as
                # the gradient of the taps that only ever meet the padding.
                hidden = F.pad(hidden, (0, 1))
            hidden = part(hidden)
        return self.last(pooled(hidden)).squeeze(-1)  # type: ignore[no-any-return]


def untouched(module: nn.Module, *inputs: Tensor) -> Tensor:
    """``module(*inputs)`` with weights that get no gradient; the inputs get theirs.

    Buffers are left as they are too: running statistics would otherwise count what the module's own player has
    counted already.
    """
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module, weights | buffers, inputs)  # type: ignore[no-any-return]


class Game(NamedTuple):
    """What the two players of a least-squares GAN (arXiv 1611.04076) minimise, and how the game stands.

    Args:
        discriminator: 0-d, ``mean (1 - D(real))^2 + mean D(fake)^2``: gradients for the discriminator alone.
        generator: 0-d, ``mean (1 - D(fake))^2``: gradients for what made ``fake`` alone.
        accuracy: 0-d, the share of right decisions at the threshold 1/2.
    """

    discriminator: Tensor
    generator: Tensor
    accuracy: Tensor


def least_squares(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Game:
    """``(B, C, ...), (B, C, ...)`` -> both players' losses, to be summed and sent back in one pass.

    ``discriminator`` is a :class:`Discriminator` or another module that scores each sample by itself.
    """
    on_real, on_fake = single(discriminator(torch.cat([real, fake]).detach())).chunk(2)
    fooled = single(untouched(discriminator, fake))
    right = torch.cat([on_real.detach() > 0.5, on_fake.detach() <= 0.5])
    return Game(
        (1 - on_real).square().mean() + on_fake.square().mean(),
        (1 - fooled).square().mean(),
        right.to(on_real.dtype).mean(),
    )
