"""FFL, feature fusion learning (Kim, Hyun, Chung, Kwak, arXiv 1904.09058).

The last feature maps of the peers are fused and classified. The mean of the peers teaches the fused classifier, which
teaches every peer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.core.ranges import Positive, Share, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.functional import divergence, learning, ramp_up, require, soft_cross_entropy


@dataclass(eq=False, repr=False)
class FFL(Loss):
    """The peers' feature maps are fused and classified; the fused classifier teaches every peer.

    ``sum_i CE(z_i) + CE(z_f) + weight r(t) T^2 [sum_i KL(p_f || p_i) + KL(p_e || p_f)]`` with z_e the mean of the z_i.

    z_f is the output of the fusion module for the maps of the last stages: concatenation, 3x3 depthwise convolution,
    1x1 convolution (each with batch norm and ReLU), mean over the positions, linear layer. Teachers are detached; the
    features are not: CE(z_f) and KL(p_e || p_f) train the peers through them, as in the official code. Peers may be
    branches on a shared trunk (the sub-networks of the paper) or separate networks.

    The terms of the fused classifier are divided evenly over the peers that learn. The map of a frozen peer is fused
    and its logits are part of the mean, but it learns nothing. A peer is deployed without the fusion module.

    Ours: maps of different sizes are average-pooled to the smallest, and the module is as wide as the widest peer (in
    the paper all peers have the same width). The official code trains the module with a separate weight decay of 1e-5;
    here the one of the optimizer applies.

    Args:
        temperature: T of all softmaxes. 3, as in the official code.
        weight: weight of the distillation. 1, as in the official code.
        ramp_up: share of training over which the weight rises to its full value: 80 of 300 epochs in the official code.

    >>> maps = torch.rand(2, 4, 6, 5, 5)
    >>> outputs = Outputs(torch.zeros(2, 4, 10), tuple((each,) for each in maps))
    >>> loss = FFL()
    >>> loss.setup(outputs)
    >>> sorted(loss(outputs, torch.eye(10)[:4]))
    ['distill', 'distill_fused', 'fused', 'task']
    """

    needs = ("stages",)

    temperature: Positive = 3.0
    weight: Weight = 1.0
    ramp_up: Share = 0.2667

    def __post_init__(self) -> None:
        super().__post_init__()
        self.fusion: Fusion | None = None

    def setup(self, outputs: Outputs) -> None:
        """Create the fusion module for the shapes of these outputs, unless the existing one fits.

        Raises:
            ValueError: the stages do not end in feature maps with 1 to 3 spatial axes, the same number for all peers.
        """
        require(outputs, "FFL", stages=1)
        maps = [stages[-1] for stages in outputs.maps]
        axes = {each.ndim - 2 for each in maps}
        if len(axes) > 1 or not axes <= {1, 2, 3}:
            shapes = ", ".join(f"peer {index} {tuple(each.shape)}" for index, each in enumerate(maps))
            raise ValueError(
                f"FFL fuses feature maps (B, channels, ...) with 1 to 3 spatial axes, as many for all peers; the last "
                f"stages return {shapes}: name modules that return such maps by stages=[...] of a Cohort"
            )
        shape = (tuple(each.shape[1] for each in maps), axes.pop(), outputs.logits.shape[-1])
        if self.fusion is None or self.fusion.shape != shape:
            self.fusion = Fusion(*shape).to(outputs.logits)

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Logits ``(P, B, C)``, targets ``(B, C)`` -> ``{"task", "distill", "fused", "distill_fused"}``, each ``(P,)``.

        ``fused`` is CE(z_f) and ``distill_fused`` KL(p_e || p_f), both divided evenly over the peers that learn.

        Raises:
            ValueError: :meth:`setup` was not called.
        """
        if self.fusion is None:
            raise ValueError("FFL has a fusion module: loss.setup(outputs) makes it from one example")
        maps = [
            stages[-1].detach() if peer in outputs.frozen else stages[-1] for peer, stages in enumerate(outputs.maps)
        ]
        fused, ensemble = self.fusion(maps)[None], outputs.logits.mean(0, keepdim=True)
        students, peers = learning(outputs.logits, outputs), len(outputs.learners)
        weight = self.weight * ramp_up(progress, self.ramp_up)
        taught = divergence(ensemble, fused, self.temperature)
        return {
            "task": soft_cross_entropy(students, targets),
            "distill": weight * divergence(fused, students, self.temperature),
            "fused": soft_cross_entropy(fused, targets).expand(peers) / peers,
            "distill_fused": weight * (taught.expand(peers) / peers),
        }


class Fusion(nn.Module):
    """Feature maps of all peers -> logits ``(B, classes)``.

    Args:
        channels: channels of the map of each peer.
        axes: number of spatial axes of the maps, 1 to 3.
        classes: number of classes.
    """

    def __init__(self, channels: tuple[int, ...], axes: int, classes: int) -> None:
        super().__init__()
        self.shape = (channels, axes, classes)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
        every, width = sum(channels), max(channels)
        self.body = nn.Sequential(
            conv(every, every, 3, padding=1, groups=every, bias=False),
            norm(every),
            nn.ReLU(),
            conv(every, width, 1, bias=False),
            norm(width),
            nn.ReLU(),
        )
        self.last = nn.Linear(width, classes)
        for layer in self.body:
            if isinstance(layer, conv):  # as in the official code
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps ``(B, channels, ...)`` of all peers -> ``(B, classes)``."""
        size = tuple(map(min, zip(*(each.shape[2:] for each in maps), strict=True)))
        pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
        even = [each if each.shape[2:] == size else pool(each, size) for each in maps]
        return self.last(self.body(torch.cat(even, 1)).flatten(2).mean(-1))  # type: ignore[no-any-return]
