"""Find the batch axis of stage outputs by comparing two batches of different sizes."""

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
    """Run a peer on two and on three images in evaluation mode, and set the batch axes in its tap, or the reason why a
    stage cannot be mixed.

    One batch is not enough: the first axis of an output ``(6, 6, 8)`` of six images may be time.

    Args:
        peer: the network.
        images: ``(B, C, ...)``, B at least 1.
        tap: the tap of the peer.
        paths: the module paths of its stages.
        name: name of the peer in messages.
    """
    found, tap.axes = [], {}
    for size in _SIZES:
        rows = torch.arange(size, device=images.device) % len(images)
        with evaluating(peer), torch.random.fork_rng(devices=[]), tap.recording_shapes() as shapes, catch_warnings():
            try:
                simplefilter("ignore")  # checkpointing warns if no input requires a gradient
                peer(images.index_select(0, rows))
            except (RuntimeError, ValueError, AssertionError):  # it needs another batch size, or cannot run at all
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
    """The batch axis of each tensor; empty if that of one is ambiguous, or if no tensor depends on the batch."""
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
        f"{name} returns {shown} for {_SIZES[0]} and {_SIZES[1]} images: it has no batch axis and cannot be mixed; "
        "accepted: stages=[...] with modules whose outputs have one"
    )
