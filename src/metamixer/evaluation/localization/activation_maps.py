"""Class activation maps: the image regions that increase the logit of a class.

Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391): the channels of a late feature map, weighted by the mean
gradient of the class logit with respect to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.stages import check_stages, find_stages
from metamixer.core.eval_mode import evaluating
from metamixer.core.layout import Layout, channels_first, stage_layouts
from metamixer.core.types import logits_of


class NoMap(ValueError):
    """A network has no feature map."""


def activation_maps(
    network: nn.Module, images: Tensor, classes: Tensor | None = None, *, stage: str
) -> tuple[Tensor, Tensor]:
    """Compute the activation map of a class for each image.

    The network runs in evaluation mode; its modes, gradients and hooks are unchanged afterwards.

    Args:
        network: maps ``(B, C, H, W)`` to ``(B, K)`` logits, or to an object with ``.logits``.
        images: ``(B, C, H, W)``, normalised.
        classes: ``(B,)`` int64, the class of each map; None: the predicted class.
        stage: the path of the module whose output is the feature map; see :func:`map_stage`.

    Returns:
        Maps ``(B, H, W)`` in [0, 1], each with a maximum of 1, or 0 everywhere if no region supports the class; and the
        logits ``(B, K)``.

    Raises:
        NoMap: the output of the stage is not a map ``(B, c, h, w)`` or ``(B, h, w, c)``, nor tokens on the image grid.
    """
    raw, logits = raw_maps(network, images, classes, stage=stage)
    large = F.interpolate(raw[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    return (large - low) / torch.where(high > low, high - low, 1), logits


def raw_maps(network: nn.Module, images: Tensor, classes: Tensor | None = None, *, stage: str) -> tuple[Tensor, Tensor]:
    """The maps as defined in the paper, after ReLU: ``(B, h, w)`` in the size of the stage; and the logits."""
    layout = stage_layouts(network, images, (stage,))[0]
    seen: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        # The graph starts here: earlier layers need no gradients, and frozen networks have gradients too.
        first = output[0] if isinstance(output, tuple) else output
        seen.append(first.detach().requires_grad_())
        after = seen[-1].clone()  # the next layer may work in place, which a leaf forbids
        return (after, *output[1:]) if isinstance(output, tuple) else after

    with torch.inference_mode(False), torch.enable_grad(), evaluating(network):
        handle = network.get_submodule(stage).register_forward_hook(cut)
        try:
            logits = logits_of(network(images))
        finally:
            handle.remove()
        if len(seen) != 1 or channels_first(seen[0], layout, images.shape[2:]).ndim != 4:
            shapes = ", ".join(str(tuple(each.shape)) for each in seen) or "nothing"
            raise NoMap(f"{stage!r} returns {shapes}; expected one map (B, c, h, w), or tokens on the image grid")
        chosen = logits.detach().argmax(1) if classes is None else classes
        (slope,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), seen)
    feature, slope = (channels_first(each.detach(), layout, images.shape[2:]) for each in (seen[0], slope))
    return (slope.mean((2, 3), keepdim=True) * feature).sum(1).relu(), logits.detach()


@torch.no_grad()
def map_stage(network: nn.Module, images: Tensor, stages: tuple[str, ...] | None = None) -> str:
    """The last stage whose output is a map with more than one position, of an image or of tokens on its grid.

    If the head only reads the class token, as in many ViTs, the other tokens of the last block have no gradient. The
    result is then the last module whose tokens have gradients: the layer norm before the last attention.

    Args:
        network: the network; it runs on one of ``images`` in evaluation mode.
        images: ``(B, C, H, W)``.
        stages: module paths to choose from; None: those found by :func:`metamixer.cohort.stages.find_stages`.

    Raises:
        NoMap: the output of no stage is such a map.
        StagesNotFound: no stages are found, or a path does not exist.

    >>> from metamixer.models import resnet8
    >>> map_stage(resnet8(num_classes=10, in_channels=1), torch.zeros(1, 1, 28, 28))
    'stage3'
    """
    paths = find_stages(network) if stages is None else check_stages(network, stages)
    layouts = dict(zip(paths, stage_layouts(network, images, paths), strict=True))
    outputs = dict(_outputs(network, images[:1], paths)[1])
    for path in reversed(paths):
        if path in outputs:
            shape = channels_first(outputs[path], layouts[path], images.shape[2:]).shape
            if len(shape) == 4 and shape[2] * shape[3] > 1:
                return _last_that_counts(network, images[:1], path, layouts[path]) if outputs[path].ndim == 3 else path
    found = ", ".join(f"{path} {tuple(output.shape)}" for path, output in outputs.items())
    raise NoMap(f"{type(network).__name__} has no stage that returns a map, or tokens on the image grid: {found}")


def map_stages(cohort: Cohort | Sequence[nn.Module], images: Tensor) -> tuple[str | NoMap, ...]:
    """:func:`map_stage` of every network, or the error if it has none; peers use the stages of their cohort."""
    networks = list(cohort.peers if isinstance(cohort, Cohort) else cohort)
    stages = cohort.stage_paths if isinstance(cohort, Cohort) else [None] * len(networks)
    found: list[str | NoMap] = []
    for network, own in zip(networks, stages, strict=True):
        try:
            found.append(map_stage(network, images, own))
        except NoMap as error:
            found.append(error)
    return tuple(found)


def _outputs(network: nn.Module, images: Tensor, paths: Sequence[str]) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """The logits, and the first tensor in the output of each module, in the order in which the modules ended."""
    found: list[tuple[str, Tensor]] = []

    def note(path: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor):
            found.append((path, first))

    handles = [
        network.get_submodule(path).register_forward_hook(lambda _, __, output, path=path: note(path, output))
        for path in paths
    ]
    try:
        with evaluating(network):
            return logits_of(network(images)), found
    finally:
        for handle in handles:
            handle.remove()


def _last_that_counts(network: nn.Module, images: Tensor, path: str, layout: Layout) -> str:
    """The last module up to ``path`` with that output shape for which the logit of the top class has a gradient."""
    every = [name for name, _ in network.named_modules() if name]
    with torch.inference_mode(False), torch.enable_grad():
        logits, outputs = _outputs(network, images.clone().requires_grad_(), every)
        outputs = [(name, output) for name, output in outputs if output.requires_grad]
        names = [name for name, _ in outputs]
        slopes = torch.autograd.grad(logits.amax(1).sum(), [output for _, output in outputs], allow_unused=True)
    last = names.index(path)
    shape = outputs[last][1].shape
    for name, slope in zip(reversed(names[: last + 1]), reversed(slopes[: last + 1]), strict=True):
        counts = slope is not None and slope.shape == shape and names.count(name) == 1
        if counts and channels_first(slope, layout, images.shape[2:]).any():
            return name
    return path
