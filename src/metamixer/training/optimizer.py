"""Settings of optimizers and learning-rate schedules."""

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
from metamixer.training.uncompiled import without_compiler


@dataclass(frozen=True)
class Optim:
    """Optimizer and learning-rate schedule.

    Args:
        name: ``sgd`` or ``adamw``.
        lr: peak learning rate. 0.05 with a short warm-up trained every network that we tried; CIFAR recipes use 0.1.
            ``auto`` runs a learning-rate range test before training.
        momentum, nesterov: options of SGD.
        weight_decay: L2 penalty for SGD, decoupled for AdamW.
        schedule: ``cosine`` to 0, ``step`` (multiplied by ``gamma`` at each of ``milestones``) or ``constant``.
        milestones: shares of training, for ``step``.
        gamma: factor of the learning rate at each milestone.
        warmup: share of training over which the learning rate rises linearly to ``lr``.
        clip: largest gradient norm of a peer. Each peer is clipped separately, so that one does not slow down the
            others. 5 limits outliers and does not affect ordinary steps; None: no clipping.
        layer_decay: learning rate of each layer relative to the next one, towards the input, such as 0.75 for
            fine-tuning. Layers are those of timm, or the stages of other networks. 1: the same rate for all layers.
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
        """Build an optimizer with parameter groups for each peer that learns, and for the weights of the loss.

        Each group has an ``owner``, and a ``scale``: its learning rate relative to the schedule.

        Args:
            cohort: the peers.
            loss: the loss, which may have weights.
            peers: settings of each peer; missing ones are the defaults.
            later: weights that start learning in a later epoch. They get separate groups, because the fused kernels of
                torch do not accept weights with and without momentum together.
        """
        peak = self.peak
        modules = {**{f"peer {index}": peer for index, peer in enumerate(cohort.peers)}, "the loss": loss}
        groups: list[dict[str, Any]] = []
        waiting = {id(weight) for weight in later}
        taken: set[nn.Parameter] = set()  # a shared trunk is in the group of the first peer
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
        # One fused kernel for all weights; torch raises an error if the device has none.
        if self.name == "adamw":
            return without_compiler(torch.optim.AdamW)(groups, lr=peak, weight_decay=self.weight_decay, fused=True)
        return without_compiler(torch.optim.SGD)(
            groups,
            lr=peak,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def rate(self, progress: float) -> float:
        """The learning rate after the share ``progress``, in [0, 1), of training.

        It only depends on the progress, so a resumed run needs no scheduler state.

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
        """The peak learning rate; ``ValueError`` if it is ``auto``."""
        if self.lr == "auto":
            raise ValueError("lr='auto' works in runs of recipes only; accepted here: a number")
        return self.lr


def layer_scales(network: nn.Module, paths: Sequence[str], decay: float) -> dict[nn.Parameter, float]:
    """The factor of the learning rate of each weight: 1 for the head, multiplied by ``decay`` for each earlier layer.

    The layers are those of timm (BEiT, arXiv 2106.08254) if the network has them; otherwise they are its stages, with
    the stem in the first one, and the head.

    Args:
        network: a peer.
        paths: paths of the modules whose outputs end its stages.
        decay: factor per layer, in (0, 1].
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
    """The optimizer state of every weight, by owner, so that a peer can be resumed in another process."""
    state = optimizer.state_dict()
    found: dict[str, list[dict[str, Any]]] = {}
    for group in state["param_groups"]:
        found.setdefault(group["owner"], []).extend(state["state"].get(number, {}) for number in group["params"])
    return found


def load_state(optimizer: torch.optim.Optimizer, saved: Mapping[str, list[dict[str, Any]]]) -> None:
    """Load the output of :func:`saved_state`; owners that this optimizer does not have are ignored.

    Raises:
        ValueError: an owner has another number of weights, or its state was not saved.
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
