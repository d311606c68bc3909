"""Run peers in parallel on a CPU, each in a thread with its own cores.

Two small networks on two cores are faster in parallel than one after the other on both cores: a convolution of 16
channels is too small to be split. The forward pass of a peer does not depend on the others. The outputs of all peers
enter the graph of the caller as the result of one operation, whose backward pass again runs the peers in parallel.
Losses and ``backward()`` therefore need no change.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Parallel = Literal["none", "threads"]
PARALLEL: tuple[str, ...] = get_args(Parallel)

Work = Callable[[int, Tensor], tuple[Tensor, ...]]
"""Runs peer ``index`` on its images and returns all outputs as a flat tuple."""

_R = TypeVar("_R")


def in_threads(work: Work, images: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Run ``work(index, images[index])`` for all peers in parallel on the CPU, forward and backward.

    Only ``backward()`` computes gradients of the weights. The weights are not inputs of the graph of the caller, so
    ``torch.autograd.grad`` with respect to them, a second backward pass, and second derivatives are not available.

    Raises:
        Exception: the exception of the first peer that failed, after all have finished.
    """
    if not torch.is_grad_enabled():
        return _each(lambda index: work(index, images[index]), len(images))
    anchor = torch.empty(0, requires_grad=True)  # autograd records the operation only if an input requires a gradient
    sizes: list[int] = []
    flat = iter(_Together.apply(work, sizes, anchor, *images))  # type: ignore[no-untyped-call]
    return [tuple(next(flat) for _ in range(size)) for size in sizes]


class _Together(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Work, sizes: list[int], anchor: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
        leaves = [each.detach().requires_grad_(each.requires_grad) for each in images]

        def run(index: int) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                return work(index, leaves[index])

        ctx.leaves, ctx.found = leaves, _each(run, len(images))
        ctx.set_materialize_grads(False)
        sizes.extend(len(found) for found in ctx.found)
        inner = [tensor for found in ctx.found for tensor in found]
        outer = [tensor.detach() for tensor in inner]
        ctx.mark_non_differentiable(
            *(out for out, tensor in zip(outer, inner, strict=True) if not tensor.requires_grad)
        )
        return tuple(outer)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.found is None:
            raise RuntimeError("peers in threads have one backward pass for each forward pass; this is the second")
        found, leaves, left = ctx.found, ctx.leaves, iter(grads)
        ctx.found = ctx.leaves = None
        own = [[next(left) for _ in peer] for peer in found]

        def run(index: int) -> Tensor | None:
            wanted = [
                (out, grad)
                for out, grad in zip(found[index], own[index], strict=True)
                if grad is not None and out.requires_grad
            ]
            if wanted:
                torch.autograd.backward([out for out, _ in wanted], [grad for _, grad in wanted])
            gradient: Tensor | None = leaves[index].grad
            return gradient

        return (None, None, None, *_each(run, len(found)))


def _each(run: Callable[[int], _R], count: int) -> list[_R]:
    """Run ``run(index)`` for every index in the pool, with the gradient mode and autocast of the caller."""
    inherited = _inherited()

    def task(index: int) -> _R:
        with inherited():
            return run(index)

    cores = torch.get_num_threads()
    workers = min(count, cores)
    futures = [_pool(workers, cores // workers).submit(task, index) for index in range(count)]
    wait(futures)
    return [future.result() for future in futures]


def _inherited() -> Callable[[], Any]:
    """A context that applies the thread-local state of the caller: gradient mode and autocast."""
    grad = torch.is_grad_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    @contextmanager
    def inherited() -> Iterator[None]:
        # Without the cache of cast weights: all threads share it, and the first one to finish clears it.
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=dtype, enabled=autocast, cache_enabled=False):
            yield

    return inherited


@cache
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """A pool of workers with ``threads`` cores each; it lives as long as the process."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="metamixer-peer")
    all_there = threading.Barrier(workers + 1)

    def begin() -> None:
        # Read first: on first use a thread adopts the number that any thread set last.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        all_there.wait()

    usual = torch.get_num_threads()
    for _ in range(workers):
        pool.submit(begin)
    all_there.wait()
    torch.set_num_threads(usual)
    return pool
