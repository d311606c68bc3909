"""Optimizers and learning-rate schedules as one frozen value."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.ranges import Positive, Weight, check_fields
from metamixer.training.peer_settings import PeerSettings


@dataclass(frozen=True)
class Optim:
    """How weights are updated.

    Args:
        name: ``sgd`` or ``adamw``.
        lr: peak learning rate. 0.05 and a short warm-up train every network that we tried; CIFAR recipes have 0.1.
            ``auto``: found by a range test before the run.
        momentum, nesterov: of SGD.
        weight_decay: L2 for SGD, decoupled for AdamW.
        schedule: ``cosine`` to 0, ``step`` (times ``gamma`` at each of ``milestones``) or ``constant``.
        milestones: shares of training, for ``step``.
        gamma: what the rate is multiplied by at each of them.
        warmup: the share of training over which the rate rises linearly to ``lr``.
        clip: the largest gradient norm of a peer; each is clipped by itself, so that a peer that stumbles does not
            slow the others. 5 cuts off accidents and leaves ordinary steps alone; None: no clipping.
        layer_decay: the learning rate of each layer relative to the next one, towards the images, such as 0.75 for
            fine-tuning; layers as in timm, of other networks the stages. 1: one rate.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive | Literal["auto"] = 0.05
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: Weight = 5e-4
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    clip: Positive | None = 5.0
    layer_decay: Annotated[float, Field(gt=0, le=1, json_schema_extra={"neutral": 1.0})] = 1.0

    def __post_init__(self) -> None:
        check_fields(self)

    def build(
        self,
        cohort: Cohort,
        loss: nn.Module,
        peers: Sequence[PeerSettings] = (),
        later: Collection[nn.Parameter] = (),
    ) -> torch.optim.Optimizer:
        """One optimizer with groups for each peer that learns and one for what the loss learns.

        A group says whose it is (``owner``), and by what its rate differs from the schedule's (``scale``).

        Args:
            cohort: the peers.
            loss: may learn, too.
            peers: settings of each peer; those that are missing have none of their own.
            later: weights that learn from some epoch on: in groups of their own, because torch's fused kernels take
                no weights with and without momentum together.
        """
        peak = self.peak
        modules = {**{f"peer {index}": peer for index, peer in enumerate(cohort.peers)}, "the loss": loss}
        groups: list[dict[str, Any]] = []
        waiting = {id(weight) for weight in later}
        taken: set[nn.Parameter] = set()  # a trunk that peers share is in the first one's group
        for index, (owner, module) in enumerate(modules.items()):
            own = peers[index] if index < min(len(peers), len(cohort.peers)) else PeerSettings()
            rate = 1.0 if own.lr is None else own.lr / peak
            scales: dict[nn.Parameter, float] = {}
            if self.layer_decay != 1 and index < len(cohort.peers) and index in cohort.learners:
                scales = layer_scales(module, cohort.stage_paths[index], self.layer_decay)
            alike: dict[tuple[bool, float], list[nn.Parameter]] = {}
            for weight in module.parameters():
                if weight.requires_grad and weight not in taken:
                    alike.setdefault((id(weight) in waiting, rate * scales.get(weight, 1.0)), []).append(weight)
                    taken.add(weight)
            decay = {} if own.weight_decay is None else {"weight_decay": own.weight_decay}
            groups += [{"params": of, "owner": owner, "scale": scale, **decay} for (_, scale), of in alike.items()]
        if not groups:
            raise ValueError("no peer learns here: all of them are frozen")
        # One fused kernel for all weights; where it does not exist torch says so itself.
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=peak, weight_decay=self.weight_decay, fused=True)
        return torch.optim.SGD(
            groups,
            lr=peak,
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
        peak = self.peak
        if progress < self.warmup:
            return peak * progress / self.warmup
        if self.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        if self.schedule == "step":
            return peak * self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        return peak

    @property
    def peak(self) -> float:
        """The peak learning rate; ``ValueError`` where it is still to be found."""
        if self.lr == "auto":
            raise ValueError("lr='auto' is found by a run of a recipe; accepted here is a number")
        return self.lr


def layer_scales(network: nn.Module, paths: Sequence[str], decay: float) -> dict[nn.Parameter, float]:
    """The factor of the learning rate of each weight: 1 for the head, ``decay`` more for each layer below it.

    timm's groups (BEiT, arXiv 2106.08254) where a network has them; else the layers are its stages, the stem among the
    first one, and all that comes after them.

    Args:
        network: a peer.
        paths: the modules at whose outputs its stages end.
        decay: in (0, 1].
    """
    if hasattr(network, "group_matcher"):
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(network, layer_decay=decay)
        return {weight: group["lr_scale"] for group in groups for weight in group["params"]}
    weights = dict(network.named_parameters())
    order, layers = list(weights.values()), [0] * len(weights)
    for path in paths:
        last = max(index for index, each in enumerate(order) if _within(network, path, each))
        layers = [layer + (index > last) for index, layer in enumerate(layers)]
    return {weight: float(decay ** (len(paths) - layer)) for weight, layer in zip(order, layers, strict=True)}


def _within(network: nn.Module, path: str, weight: nn.Parameter) -> bool:
    return any(weight is each for each in network.get_submodule(path).parameters())


def by_owner(optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
    """The weights of each owner, in the order of its groups."""
    found: dict[str, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        found.setdefault(group["owner"], []).extend(group["params"])
    return found


def saved_state(optimizer: torch.optim.Optimizer) -> dict[str, list[dict[str, Any]]]:
    """The optimizer's state of every weight, by owner: it is found again in whatever process a peer is trained."""
    state = optimizer.state_dict()
    found: dict[str, list[dict[str, Any]]] = {}
    for group in state["param_groups"]:
        found.setdefault(group["owner"], []).extend(state["state"].get(number, {}) for number in group["params"])
    return found


def load_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, list[dict[str, Any]]]) -> None:
    """Load what :func:`saved_state` returned; owners that this optimizer lacks are left aside.

    Raises:
        ValueError: an owner has another number of weights, or none is saved for it.
    """
    state = optimizer.state_dict()
    numbers: dict[str, list[int]] = {}
    for group in state["param_groups"]:
        numbers.setdefault(group["owner"], []).extend(group["params"])
    for owner, own in numbers.items():
        found = saved.get(owner)
        if found is None or len(found) != len(own):
            raise ValueError(f"there is no optimizer state for the weights of {owner}")
        state["state"] |= {number: each for number, each in zip(own, found, strict=True) if each}
    optimizer.load_state_dict(state)
