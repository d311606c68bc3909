"""ResNets for small images, and the wider variants (x4) of the distillation literature."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn


class Subsample(nn.Module):
    """The shortcut without parameters (option A): every ``stride``-th pixel, padded with zero channels.

    ``(B, c_in, H, W) -> (B, c_out, ceil(H / stride), ceil(W / stride))``
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = c_out - c_in, stride

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``(B, c_in, H, W) -> (B, c_out, ceil(H / stride), ...)``."""

    def __init__(self, c_in: int, c_out: int, stride: int, shortcut: Literal["A", "B"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module
        if stride == 1 and c_in == c_out:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = Subsample(c_in, c_out, stride)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        """ReLU of the sum of residual and shortcut."""
        residual = F.relu(self.norm1(self.conv1(x)), inplace=True)
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet for small images (He, Zhang, Ren, Sun, CVPR 2016, arXiv 1512.03385, section 4.2).

    A 3x3 convolution, three stages of ``(depth - 2) / 6`` basic blocks at full, half and quarter resolution, global
    average pooling and one linear layer. ``(B, in_channels, H, W) -> (B, num_classes)``, any H and W.

    Args:
        num_classes: number of classes.
        in_channels: number of channels of the images.
        depth: number of weight layers, 6n + 2.
        widths: channels of the stem and of the three stages. ``resnet8x4`` and ``resnet32x4``, known from CRD
            (Tian et al., arXiv 1910.10699), have (32, 64, 128, 256): the stem is only twice as wide.
        shortcut: shortcut between stages of different width: ``"B"`` is a 1x1 convolution with batch norm, ``"A"`` has
            no parameters. He et al. use A on CIFAR-10 (resnet20 has 0.27 M parameters). The code and tables of the
            distillation literature use B (0.28 M with 100 classes); B is the default so that results are comparable.

    Raises:
        ValueError: the depth is not 6n + 2, or the shortcut is neither A nor B.

    >>> import torch
    >>> net = resnet20(num_classes=100)
    >>> net(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([2, 100]), 278324)
    """

    stage_paths: tuple[str, ...] = ("stage1", "stage2", "stage3")

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        depth: int,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        shortcut: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"a ResNet of depth {depth} does not exist; 8, 14, 20, ... (6n + 2) do")
        if shortcut not in ("A", "B"):
            raise ValueError(f"{shortcut!r} is not a shortcut; 'A' (no parameters) or 'B' (1x1 convolution)")

        def stage(c_in: int, c_out: int, stride: int) -> nn.Sequential:
            first = BasicBlock(c_in, c_out, stride, shortcut)
            return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1, shortcut) for _ in range((depth - 2) // 6 - 1)))

        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(inplace=True),
        )
        self.stage1 = stage(widths[0], widths[1], stride=1)
        self.stage2 = stage(widths[1], widths[2], stride=2)
        self.stage3 = stage(widths[2], widths[3], stride=2)
        self.classifier = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in_channels, H, W) -> (B, num_classes)`` logits."""
        x = self.stage3(self.stage2(self.stage1(self.stem(images))))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


resnet8 = partial(ResNet, depth=8)
resnet14 = partial(ResNet, depth=14)
resnet20 = partial(ResNet, depth=20)
resnet32 = partial(ResNet, depth=32)
resnet44 = partial(ResNet, depth=44)
resnet56 = partial(ResNet, depth=56)
resnet110 = partial(ResNet, depth=110)
resnet8x4 = partial(ResNet, depth=8, widths=(32, 64, 128, 256))
resnet32x4 = partial(ResNet, depth=32, widths=(32, 64, 128, 256))
