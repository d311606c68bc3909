"""Handle out-of-memory errors: recognise them, and suggest settings that fit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from metamixer.core.text import counted
from metamixer.core.types import Batch


def is_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had: torch has a class for it on accelerators only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def what_fits(batch: Batch, micro_batches: int, fits: Callable[[int], bool] | None) -> str:
    """What to do about a batch that did not fit, in words.

    Args:
        batch: that one.
        micro_batches: how many parts it was taken in.
        fits: tries the first of so many parts; None: it cannot be tried here.
    """
    count, shape = len(batch), "x".join(map(str, batch.images.shape[1:]))
    at_a_time = counted(-(-count // micro_batches), "image")
    begin = f"out of memory with {at_a_time} of {shape} at a time on {batch.images.device}"
    others = "train.precision=bf16, smaller networks or fewer peers take less"
    parts = 2 * micro_batches
    if fits is None:
        return f"{begin}: train.micro_batches={parts} takes about half of it; {others}"
    while parts <= count:
        if fits(parts):
            return (
                f"{begin}: train.micro_batches={parts} fits, as a trial has just shown; it computes the batch in "
                f"parts of {-(-count // parts)}, and so would train.batch_size={max(2, count // parts)}; {others}"
            )
        parts *= 2
    return f"{begin}, and not even one image at a time fits: {others}"
