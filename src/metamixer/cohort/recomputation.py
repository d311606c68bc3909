"""Activation checkpointing of peers: blocks are recomputed in the backward pass instead of kept.

Training then needs the memory of one block's activations instead of all of them, and about a third more time (Chen, Xu,
Zhang, Guestrin, arXiv 1604.06174). Gradients, running statistics and random numbers are those without it.
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
    """Takes the place of a block's ``forward``. Outside of the cohort's pass, or without gradients, it is that."""

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
                f"a {type(self.module).__name__} changes its buffer {changed[0]} as it computes, so it computes "
                "something else the second time; accepted: checkpointing=False"
            )
        return output

    def _versions(self) -> dict[str, tuple[int, int]]:
        """What a change of a buffer, in place or not, changes."""
        found = [(f"{type(owner).__name__}.{name}", owner._buffers[name]) for owner, name in self.buffers]
        return {name: (id(each), each._version) for name, each in found if isinstance(each, Tensor)}


class _StatisticsStay:
    """Batch norm computes with the batch, and neither its running statistics nor its counter move a second time.

    A context that can be entered again: a graph that is kept runs backward more than once.
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
    """Let the blocks of a network be computed again in the backward pass instead of being kept.

    Args:
        network: its blocks get an attribute ``forward``; names, weights and classes stay as they are.
        paths: where its stages end. Blocks are the entries of the lists that they are, or are in; where there are none
            with two layers or more, the whole network is one.
        tap: of its points.
        random: whether it draws random numbers, which have to be the same both times.
    """
    for block in _blocks(network, paths) or [network]:
        forward = vars(block).get("forward") or _Recomputed(block, random)
        forward.taps.append(tap)
        object.__setattr__(block, "forward", forward)  # as an attribute it hides the method of the class


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
