"""Wide ResNets for small images."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class PreactBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice: ``(B, c_in, H, W) -> (B, c_out, ceil(H / stride), ...)``.

    If the width changes, the input of the 1x1 convolution of the shortcut is the activated input, as in the authors'
    code.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        same = stride == 1 and c_in == c_out
        self.shortcut = None if same else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The sum is not activated; the next block, or the end of the network, does that."""
        active = F.relu(self.norm1(x), inplace=True)
        residual = F.relu(self.norm2(self.conv1(active)), inplace=True)
        total: Tensor = self.conv2(self.dropout(residual))
        return total + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Wide ResNet (Zagoruyko, Komodakis, BMVC 2016, arXiv 1605.07146): shallower and wider, pre-activation.

    ``wrn_16_2`` has 16 weight layers and twice the width of a ResNet.
    ``(B, in_channels, H, W) -> (B, num_classes)``, any H and W.

    Stages 1 and 2 end with the sum of their last block, before its activation, where Manifold Mixup mixes as well. The
    last stage ends after the final batch norm and ReLU, because that is the map that the classifier averages, and so
    the one to compare with the last stage of another network.

    Args:
        num_classes: number of classes.
        in_channels: number of channels of the images.
        depth: number of weight layers, 6n + 4.
        width: factor of the 16, 32 and 64 channels of the stages.
        dropout: dropout probability between the two convolutions of a block; the paper uses 0 or 0.3.

    Raises:
        ValueError: the depth is not 6n + 4.

    >>> import torch
    >>> net = wrn_16_2(num_classes=100)
    >>> net(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([2, 100]), 703284)
    """

    stage_paths: tuple[str, ...] = ("stage1", "stage2", "final")

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        depth: int,
        width: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"a wide ResNet of depth {depth} does not exist; 10, 16, 22, ... (6n + 4) do")

        def stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
            first = PreactBlock(c_in, c_out, stride, dropout)
            return nn.Sequential(first, *(PreactBlock(c_out, c_out, 1, dropout) for _ in range((depth - 4) // 6 - 1)))

        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.stage1 = stage(16, 16 * width, stride=1)
        self.stage2 = stage(16 * width, 32 * width, stride=2)
        self.stage3 = stage(32 * width, 64 * width, stride=2)
        self.final = nn.Sequential(nn.BatchNorm2d(64 * width), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in_channels, H, W) -> (B, num_classes)`` logits."""
        x = self.final(self.stage3(self.stage2(self.stage1(self.stem(images)))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


wrn_16_1 = partial(WideResNet, depth=16, width=1)
wrn_16_2 = partial(WideResNet, depth=16, width=2)
wrn_40_1 = partial(WideResNet, depth=40, width=1)
wrn_40_2 = partial(WideResNet, depth=40, width=2)
