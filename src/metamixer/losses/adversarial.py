"""What adversarial methods share: a discriminator, and the device that needs no second optimizer.

Two players with one backward pass: the discriminator's loss sees features without their graph, the networks' loss sees
a discriminator whose weights are constants. So each gradient reaches one player, and the sum of the two losses has
the gradients of the simultaneous two-player update. (Gradient reversal has them only where the game is zero-sum,
which least-squares GANs are not.)
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call


class Discriminator(nn.Module):
    """Tells whose features it sees: ``(B, C, ...) -> (B,)``, near 1 for what it takes for real.

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
            layers += [_layer(into, width, axes), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers)
        self.last = nn.Linear(width if depth else channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, C, ...) -> (B,)``."""
        hidden = self.body(features)
        return self.last(hidden.flatten(2).mean(-1) if hidden.ndim > 2 else hidden).squeeze(-1)  # type: ignore[no-any-return]


def _layer(channels: int, width: int, axes: int) -> nn.Module:
    if axes == 0:
        return nn.Linear(channels, width)
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](channels, width, 3, stride=2, padding=1)


def untouched(module: nn.Module, *inputs: Tensor) -> Tensor:
    """``module(*inputs)`` with weights that get no gradient; the inputs get theirs."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return functional_call(module, weights, inputs)  # type: ignore[no-any-return]
