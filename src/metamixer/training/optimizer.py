"""Optimizers and learning-rate schedules as one frozen value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.ranges import Positive, Weight, check_fields


@dataclass(frozen=True)
class Optim:
    """How weights are updated.

    Args:
        name: ``sgd`` or ``adamw``.
        lr: peak learning rate. 0.05 and a short warm-up train every network that we tried; CIFAR recipes have 0.1.
        momentum, nesterov: of SGD.
        weight_decay: L2 for SGD, decoupled for AdamW.
        schedule: ``cosine`` to 0, ``step`` (times ``gamma`` at each of ``milestones``) or ``constant``.
        milestones: shares of training, for ``step``.
        gamma: what the rate is multiplied by at each of them.
        warmup: the share of training over which the rate rises linearly to ``lr``.
        clip: the largest gradient norm of a peer; each is clipped by itself, so that a peer that stumbles does not
            slow the others. 5 cuts off accidents and leaves ordinary steps alone; None: no clipping.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: Weight = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip: Positive | None = 5.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(self, cohort: Cohort, loss: nn.Module) -> torch.optim.Optimizer:
        """One optimizer with a group for each peer that learns and one for what the loss learns."""
        modules = {**{f"peer {index}": peer for index, peer in enumerate(cohort.peers)}, "the loss": loss}
        groups: list[dict[str, Any]] = []
        taken: set[nn.Parameter] = set()  # a trunk that peers share is in the first one's group
        for owner, module in modules.items():
            learning = [weight for weight in module.parameters() if weight.requires_grad and weight not in taken]
            if learning:
                groups.append({"params": learning, "owner": owner})
                taken.update(learning)
        if not groups:
            raise ValueError("no peer learns here: all of them are frozen")
        # One fused kernel for all weights; where it does not exist torch says so itself.
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def rate(self, progress: float) -> float:
        """The learning rate when ``progress``, a share in [0, 1), of training is done.

        A function of progress alone: a resumed run needs no scheduler's state.

        >>> [round(Optim(lr=1.0, warmup=0.1).rate(at), 3) for at in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        """
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        if self.schedule == "step":
            return self.lr * self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        return self.lr


def saved_state(optimizer: torch.optim.Optimizer) -> dict[str, list[dict[str, Any]]]:
    """The optimizer's state of every weight, by owner: what peers have is found again wherever they are trained."""
    state = optimizer.state_dict()
    return {
        group["owner"]: [state["state"].get(number, {}) for number in group["params"]]
        for group in state["param_groups"]
    }


def load_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, list[dict[str, Any]]]) -> None:
    """Load what :func:`saved_state` returned; owners that this optimizer lacks are left aside.

    Raises:
        ValueError: an owner has another number of weights, or none is saved for it.
    """
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        found = saved.get(group["owner"])
        if found is None or len(found) != len(group["params"]):
            raise ValueError(f"there is no optimizer state for the weights of {group['owner']}")
        state["state"] |= {number: each for number, each in zip(group["params"], found, strict=True) if each}
    optimizer.load_state_dict(state)
