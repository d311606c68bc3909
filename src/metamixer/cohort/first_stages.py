"""Find the weights of the stem and the first stages of a network, whatever the order of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamixer.cohort.hooks import end_of, tensors
from metamixer.cohort.stages import check_stages, find_stages
from metamixer.core.eval_mode import evaluating


@dataclass(frozen=True, eq=False)
class FirstStages:
    """Weights, and the norms with running statistics all of whose weights are among them."""

    parameters: tuple[nn.Parameter, ...]
    norms: tuple[nn.Module, ...]


def first_stages(network: nn.Module, count: int, images: Tensor, paths: Sequence[str] | None = None) -> FirstStages:
    """All weights on which the output of stage ``count`` depends; 0 is the stem, that is all before the first stage.

    Found by autograd: a weight belongs to them if the output has a gradient for it. This includes position embeddings
    and class tokens, which the order of modules does not show.

    Args:
        network: the network, on any device.
        count: number of stages of the network itself, before peers are aligned.
        images: two valid input images.
        paths: paths of the modules whose outputs end its stages; None: find them.

    Raises:
        ValueError: the network has fewer stages, or no stem.
    """
    name = type(network).__name__
    paths = check_stages(network, paths) if paths else find_stages(network)
    if count > len(paths):
        raise ValueError(f"{name} has {len(paths)} stages, not {count}: {', '.join(paths)}")
    found = _upstream(network, paths[max(count, 1) - 1], images)
    if count == 0:
        inside = {id(weight) for module in _chain(network, paths[0]) for weight in module.parameters()}
        found = [weight for weight in found if id(weight) not in inside]
    if not found:
        raise ValueError(f"{name} has no weights before its first stage ({paths[0]}); stage1 is accepted")
    held = {id(weight) for weight in found}
    norms = [
        module
        for module in network.modules()
        if getattr(module, "running_mean", None) is not None
        and (own := [id(weight) for weight in module.parameters(recurse=False)])
        and held.issuperset(own)
    ]
    return FirstStages(tuple(found), tuple(norms))


def _upstream(network: nn.Module, path: str, images: Tensor) -> list[nn.Parameter]:
    """The weights that the output of a module depends on."""
    seen: list[Tensor] = []
    module = end_of(network, network.get_submodule(path))
    handle = module.register_forward_hook(lambda _, __, output: seen.extend(tensors(output)))
    try:
        with evaluating(network), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            network(images)
    finally:
        handle.remove()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    reached = torch.autograd.grad(
        [each.float().sum() for each in seen if each.requires_grad], weights, allow_unused=True
    )
    return [weight for weight, gradient in zip(weights, reached, strict=True) if gradient is not None]


def _chain(network: nn.Module, path: str) -> list[nn.Module]:
    """The modules of the first stage: the one at the path, and those before it if it is an entry of a list."""
    above, _, name = path.rpartition(".")
    parent = network.get_submodule(above)
    if not isinstance(parent, nn.Sequential | nn.ModuleList):
        return [parent.get_submodule(name)]
    children = list(parent.named_children())
    return [child for _, child in children[: [each for each, _ in children].index(name) + 1]]
