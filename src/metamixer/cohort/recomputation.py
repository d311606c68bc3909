"""Activation checkpointing of peers: blocks are recomputed in the backward pass instead of stored.

Training then needs memory for the activations of one block instead of all blocks, and about a third more time (Chen,
Xu, Zhang, Guestrin, arXiv 1604.06174). Gradients, running statistics and random numbers are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from metamixer.cohort.hooks import Tap


class _Recomputed:
    """Replaces the ``forward`` of a block. Outside the pass of a cohort, or without gradients, it only calls it."""

    def __init__(self, module: nn.Module, random: bool) -> None:
        self.module, self.random = module, random
        self.taps: list[Tap] = []  # of one peer, or of branches that share the block
        owners = [each for each in module.modules() if not isinstance(each, _NormBase)]
        self.buffers = [(owner, name) for owner in owners for name in owner._buffers]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = partial(type(self.module).forward, self.module)
        inside = any(tap.plan is not None or tap.recomputed() is not None for tap in self.taps)
        if not (inside and torch.is_grad_enabled()):
            return run(*args, **kwargs)
        before = self._versions()
        output = checkpoint(
            run,
            *args,
            use_reentrant=False,
            preserve_rng_state=self.random,
            context_fn=lambda: (nullcontext(), _StatisticsStay(self.module)),
            **kwargs,
        )
        if changed := [name for name, version in self._versions().items() if before[name] != version]:
            raise ValueError(
                f"a {type(self.module).__name__} changes its buffer {changed[0]} in the forward pass, so that "
                "recomputation gives another result; accepted: checkpointing=False"
            )
        return output

    def _versions(self) -> dict[str, tuple[int, int]]:
        """Identity and version of every buffer: they differ after any change, in place or not."""
        found = [(f"{type(owner).__name__}.{name}", owner._buffers[name]) for owner, name in self.buffers]
        return {name: (id(each), each._version) for name, each in found if isinstance(each, Tensor)}


class _StatisticsStay:
    """Keeps batch norm from updating its running statistics and counter again; it still normalises by the batch.

    The context can be entered repeatedly, because a retained graph can run backward more than once.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: list[tuple[_NormBase, float | None, Tensor | None]] = []

    def __enter__(self) -> None:
        for each in self.module.modules():
            if isinstance(each, _NormBase) and each.training and each.track_running_stats:
                self.kept.append((each, each.momentum, each.num_batches_tracked))
                each.momentum, each.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, momentum, count in self.kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
        self.kept = []


def recompute(network: nn.Module, paths: Sequence[str], tap: Tap, random: bool = True) -> None:
    """Recompute the blocks of a network in the backward pass instead of storing their activations.

    Args:
        network: its blocks get an attribute ``forward``; names, weights and classes do not change.
        paths: module paths of its stages. Blocks are the entries of the ``nn.Sequential`` or ``nn.ModuleList`` at or
            around each path. If there are none with two layers or more, the whole network is one block.
        tap: the tap of the network.
        random: whether it may draw random numbers, which then are repeated in the second run.
    """
    for block in _blocks(network, paths) or [network]:
        forward = vars(block).get("forward") or _Recomputed(block, random)
        forward.taps.append(tap)
        object.__setattr__(block, "forward", forward)  # an attribute takes precedence over the method of the class


def _blocks(network: nn.Module, paths: Sequence[str]) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}
    for path in paths:
        parts = path.split(".")
        above = [network.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1)]
        chain = next((each for each in above if isinstance(each, nn.Sequential | nn.ModuleList)), None)
        for block in [above[0]] if chain is None else chain.children():
            free = isinstance(vars(block).get("forward"), _Recomputed | None)  # the end of a trunk is not
            if free and _layers(block) > 1:
                found[id(block)] = block
    every = list(found.values())
    return [block for block in every if not any(block in other.modules() for other in every if other is not block)]


def _layers(module: nn.Module) -> int:
    return sum(
        isinstance(weight := getattr(each, "weight", None), Tensor) and weight.ndim > 1 for each in module.modules()
    )
