"""Recognise out-of-memory errors and suggest settings that fit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metamixer.cohort.cohort import Cohort
from metamixer.core.text import counted
from metamixer.core.types import Batch


def is_of_memory(error: BaseException) -> bool:
    """Whether an error is an out-of-memory error; torch has an exception class for it on accelerators only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@torch.enable_grad()
def kept_bytes(cohort: Cohort, images: Tensor) -> float:
    """The bytes that autograd saves per image for the backward pass of all peers, measured in evaluation mode.

    Args:
        cohort: the peers.
        images: some images, in their own memory.
    """
    own = {weight.untyped_storage().data_ptr() for weight in (*cohort.parameters(), *cohort.buffers())}
    kept: dict[int, int] = {}

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved.detach()  # keeps the memory alive, so that its address is not reused

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        outputs = cohort(images)
    del outputs
    return sum(kept.values()) / len(images)


def too_large(each: float, batch: Batch, micro_batches: int, free: float) -> str:
    """Suggestions for a step that does not fit in memory; empty if it fits.

    Checked in advance, because on a CPU there is no error: the system kills the process.

    Args:
        each: bytes per image, from :func:`kept_bytes`.
        batch: the batch of this process.
        micro_batches: number of parts of the batch.
        free: free memory in bytes.
    """
    count = len(batch)
    at_a_time = -(-count // micro_batches)
    if each * at_a_time <= free:
        return ""
    shape = "x".join(map(str, batch.images.shape[1:]))
    begin = (
        f"{counted(at_a_time, 'image')} of {shape} at a time need at least {each * at_a_time / 2**30:.1f} GiB, and "
        f"{free / 2**30:.1f} are free"
    )
    others = "train.checkpointing=true, smaller images or networks, or fewer peers take less"
    fitting = (parts for parts in range(micro_batches + 1, count + 1) if each * -(-count // parts) <= free / 2)
    if (parts := next(fitting, None)) is None:
        return f"{begin}; {others}"
    return f"{begin}; train.micro_batches={parts} or train.batch_size={count // parts} fits; {others}"


def what_fits(batch: Batch, micro_batches: int, fits: Callable[[int], bool] | None) -> str:
    """Suggestions for a batch that did not fit in memory.

    Args:
        batch: the batch.
        micro_batches: number of parts of the batch.
        fits: tries the first of that number of parts; None: it cannot be tried.
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
