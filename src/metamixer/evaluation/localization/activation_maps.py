"""Class activation maps: which places of an image speak for a class.

Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391): the channels of a late feature map, weighted by how much the
class's logit grows with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.stages import check_stages, find_stages
from metamixer.core.eval_mode import evaluating


class NoMap(ValueError):
    """A network has no feature map to look at."""


def activation_maps(
    network: nn.Module, images: Tensor, classes: Tensor | None = None, *, stage: str
) -> tuple[Tensor, Tensor]:
    """Where in each image the network sees a class.

    The network computes in evaluation mode; afterwards its modes, gradients and hooks are as before.

    Args:
        network: ``(B, C, H, W)`` to ``(B, K)`` logits, or to an object with ``.logits``.
        images: ``(B, C, H, W)``, normalised.
        classes: ``(B,)`` int64, the class to look for; None: the one that the network names.
        stage: the path of the module whose output is the feature map; see :func:`map_stage`.

    Returns:
        Maps ``(B, H, W)`` in [0, 1], the highest place of each at 1, all 0 where nothing speaks for the class; and the
        logits ``(B, K)``.

    Raises:
        NoMap: the stage puts out no ``(B, c, h, w)``.
    """
    raw, logits = raw_maps(network, images, classes, stage=stage)
    large = F.interpolate(raw[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / torch.where(high > low, high - low, 1), logits


def raw_maps(network: nn.Module, images: Tensor, classes: Tensor | None = None, *, stage: str) -> tuple[Tensor, Tensor]:
    """The maps as the paper defines them, rectified: ``(B, h, w)`` in the stage's own size; and the logits."""
    seen: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        # The graph begins here, so no weight below is differentiated, and a frozen network has gradients too.
        first = output[0] if isinstance(output, tuple) else output
        seen.append(first.detach().requires_grad_())
        after = seen[-1].clone()  # what follows may rectify in place, and a leaf forbids it
        return (after, *output[1:]) if isinstance(output, tuple) else after

    with torch.inference_mode(False), torch.enable_grad(), evaluating(network):
        handle = network.get_submodule(stage).register_forward_hook(cut)
        try:
            logits = _logits(network(images))
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].ndim != 4:
            shapes = ", ".join(str(tuple(each.shape)) for each in seen) or "nothing"
            raise NoMap(f"{stage!r} puts out {shapes} in a forward pass; one (B, c, h, w) would work")
        chosen = logits.detach().argmax(1) if classes is None else classes
        (slope,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), seen)
    feature, slope, logits = seen[0].detach(), slope.detach(), logits.detach()
    return (slope.mean((2, 3), keepdim=True) * feature).sum(1).relu(), logits


@torch.no_grad()
def map_stage(network: nn.Module, images: Tensor, stages: tuple[str, ...] | None = None) -> str:
    """The last stage whose output still is a map: ``(B, c, h, w)`` with more than one place.

    Args:
        network: is run once on ``images``, in evaluation mode.
        images: ``(B, C, H, W)``; one is enough.
        stages: module paths to choose from; None: those that :func:`metamixer.cohort.stages.find_stages` finds.

    Raises:
        NoMap: no stage puts out such a map, as in a transformer.
        StagesNotFound: no stages are found, or a path does not exist.

    >>> from metamixer.models import resnet8
    >>> map_stage(resnet8(num_classes=10, in_channels=1), torch.zeros(1, 1, 28, 28))
    'stage3'
    """
    paths = find_stages(network) if stages is None else check_stages(network, stages)
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        shapes[path] = tuple(first.shape) if isinstance(first, Tensor) else ()

    handles = [
        network.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: note(path, output))
        for path in paths
    ]
    try:
        with evaluating(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    for path in reversed(paths):
        shape = shapes.get(path, ())
        if len(shape) == 4 and shape[2] * shape[3] > 1:
            return path
    found = ", ".join(f"{path} {shape}" for path, shape in shapes.items())
    raise NoMap(f"{type(network).__name__} has no stage that puts out a map (B, c, h, w): {found}")


def map_stages(cohort: Cohort | Sequence[nn.Module], images: Tensor) -> tuple[str, ...]:
    """:func:`map_stage` of every network; those of a cohort have the stages that it was given or has found."""
    if isinstance(cohort, Cohort):
        return tuple(map_stage(peer, images, own) for peer, own in zip(cohort.peers, cohort.stage_paths, strict=True))
    return tuple(map_stage(network, images) for network in cohort)


def _logits(output: Any) -> Tensor:
    return cast(Tensor, getattr(output, "logits", output))
