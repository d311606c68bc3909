"""Components of adversarial methods: a discriminator that shares the optimizer of the networks.

Both players are updated in one backward pass: the loss of the discriminator uses detached features, and the loss of the
networks uses a discriminator with constant weights. Each gradient thus reaches one player only, and the sum of the two
losses has the gradients of the simultaneous two-player update. (Gradient reversal has these gradients only in zero-sum
games, and least-squares GANs are not zero-sum.)
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
    """Classifies features: ``(B, C, ...) -> (B,)``, near 1 for features classified as real.

    Convolutions of stride 2 for feature maps with 1 to 3 spatial axes, linear layers for vectors. There is no batch
    norm: its statistics would reveal whether a batch is real or fake.

    Args:
        channels: C.
        axes: number of spatial axes, 0 to 3.
        width: number of hidden channels.
        depth: number of layers before the last one.
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
                # The result is the same. Without it, oneDNN (torch 2.13, AVX-512, bf16) returns uninitialised memory as
                # the gradient of weights that are only applied to padding.
                hidden = F.pad(hidden, (0, 1))
            hidden = part(hidden)
        return self.last(pooled(hidden)).squeeze(-1)  # type: ignore[no-any-return]


def untouched(module: nn.Module, *inputs: Tensor) -> Tensor:
    """``module(*inputs)`` with constant weights; gradients flow into the inputs only.

    Buffers are not updated either: running statistics would otherwise count features twice.
    """
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module, weights | buffers, inputs)  # type: ignore[no-any-return]


class Game(NamedTuple):
    """The losses of both players of a least-squares GAN (arXiv 1611.04076), and the accuracy of the discriminator.

    Args:
        discriminator: 0-d, ``mean (1 - D(real))^2 + mean D(fake)^2``, with gradients for the discriminator only.
        generator: 0-d, ``mean (1 - D(fake))^2``, with gradients for the network that computed ``fake`` only.
        accuracy: 0-d, the share of correct decisions at the threshold 1/2.
    """

    discriminator: Tensor
    generator: Tensor
    accuracy: Tensor


def least_squares(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Game:
    """``(B, C, ...), (B, C, ...)`` -> the losses of both players, to be summed for one backward pass.

    ``discriminator`` is a :class:`Discriminator` or another module that scores each sample independently.
    """
    on_real, on_fake = single(discriminator(torch.cat([real, fake]).detach())).chunk(2)
    fooled = single(untouched(discriminator, fake))
    right = torch.cat([on_real.detach() > 0.5, on_fake.detach() <= 0.5])
    return Game(
        (1 - on_real).square().mean() + on_fake.square().mean(),
        (1 - fooled).square().mean(),
        right.to(on_real.dtype).mean(),
    )
