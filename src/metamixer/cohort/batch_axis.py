"""Find the batch axis of a stage's outputs, by comparing two batches of different sizes."""

from __future__ import annotations

from collections.abc import Sequence
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor, nn

from metamixer.cohort.hooks import Axes, Shapes, Tap
from metamixer.core.eval_mode import evaluating

_SIZES = (2, 3)


@torch.no_grad()
def find_axes(peer: nn.Module, images: Tensor, tap: Tap, paths: Sequence[str], name: str) -> None:
    """Run a peer on two and on three images, in evaluation mode, and note in its tap the axes of the batch, or what
    speaks against mixing it.

    One batch is not enough: an output ``(6, 6, 8)`` of six images may begin with time.

    Args:
        peer: the network.
        images: ``(B, C, ...)``, B at least 1.
        tap: of the peer's points.
        paths: of its stages.
        name: of the peer, for messages.
    """
    found, tap.axes = [], {}
    for size in _SIZES:
        rows = torch.arange(size, device=images.device) % len(images)
        with evaluating(peer), torch.random.fork_rng(devices=[]), tap.looking() as shapes, catch_warnings():
            try:
                simplefilter("ignore")  # checkpointing warns where no gradient is asked for
                peer(images.index_select(0, rows))
            except (RuntimeError, ValueError, AssertionError):  # it runs on batches of its own size only, or not at all
                return
            found.append(dict(shapes))
    some, more = found
    for stage, path in enumerate(paths, start=1):
        if stage in some and stage in more:
            axes = _axes(some[stage], more[stage])
            if axes:
                tap.axes[stage] = axes
            else:
                tap.refused = tap.refused or _refused(some[stage], more[stage], f"{name}, stage {stage} ({path})")


def _axes(some: Shapes, more: Shapes) -> Axes:
    """Empty where a tensor has no such axis, or none has one."""
    found: list[int | None] = []
    for one, other in zip(some, more, strict=False):
        differing = [axis for axis, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]]
        if len(one) == len(other) and not differing:
            found.append(None)
        elif len(one) == len(other) and [(one[axis], other[axis]) for axis in differing] == [_SIZES]:
            found.append(differing[0])
        else:
            return ()
    return tuple(found) if len(some) == len(more) and set(found) != {None} else ()


def _refused(some: Shapes, more: Shapes, name: str) -> str:
    shown = " and ".join(", ".join(str(tuple(shape)) for shape in shapes) or "no tensor" for shapes in (some, more))
    return (
        f"{name} puts out {shown} for {_SIZES[0]} and {_SIZES[1]} images: no axis is the batch, so it cannot be mixed; "
        "accepted: stages=[...] with modules whose outputs have one"
    )
