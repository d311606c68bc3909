"""VGG for small images, with batch norm and one linear layer, as in the distillation literature."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn


class VGG(nn.Module):
    """VGG (Simonyan, Zisserman, ICLR 2015, arXiv 1409.1556) in the small form of CRD (arXiv 1910.10699).

    Five stages of 3x3 convolutions, each with batch norm and ReLU, then global average pooling and one linear layer
    instead of the three of the paper. ``(B, in_channels, H, W) -> (B, num_classes)``, H and W at least 8.

    The first three stages are followed by max pooling, which is not part of the stage. The fourth is followed by it
    only if images are at least 64 pixels wide, so that stage 5 of a 32-pixel image still has 4x4 positions.
    The convolutions have biases, which have no effect before batch norm, because published parameter counts include
    them.

    Args:
        num_classes: number of classes.
        in_channels: number of channels of the images.
        convs: number of convolutions in each stage.

    >>> import torch
    >>> net = vgg8(num_classes=100)
    >>> net(torch.zeros(2, 3, 32, 32)).shape, sum(p.numel() for p in net.parameters())
    (torch.Size([2, 100]), 3965028)
    """

    stage_paths: tuple[str, ...] = ("stage1", "stage2", "stage3", "stage4", "stage5")

    def __init__(self, num_classes: int = 10, in_channels: int = 3, *, convs: tuple[int, int, int, int, int]) -> None:
        super().__init__()

        def stage(c_in: int, c_out: int, depth: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for c in [c_in] + [c_out] * (depth - 1):
                layers += [nn.Conv2d(c, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        self.stage1 = stage(in_channels, 64, convs[0])
        self.stage2 = stage(64, 128, convs[1])
        self.stage3 = stage(128, 256, convs[2])
        self.stage4 = stage(256, 512, convs[3])
        self.stage5 = stage(512, 512, convs[4])
        self.classifier = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, in_channels, H, W) -> (B, num_classes)`` logits."""
        x = F.max_pool2d(self.stage1(images), 2)
        x = F.max_pool2d(self.stage2(x), 2)
        x = F.max_pool2d(self.stage3(x), 2)
        x = self.stage4(x)
        if images.shape[-1] >= 64:
            x = F.max_pool2d(x, 2)
        x = self.stage5(x)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


vgg8 = partial(VGG, convs=(1, 1, 1, 1, 1))
vgg13 = partial(VGG, convs=(2, 2, 2, 2, 2))
