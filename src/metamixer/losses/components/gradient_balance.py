"""Balance terms by the norms of their gradients, relative to that of the cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class Balance(nn.Module):
    """Running means of ``|dL/dF_i|`` for each peer i, and their ratio ``|dCE/dF_i| / (|dL/dF_i| + 1e-6)``.

    VQGAN weights its discriminator in a similar way, with gradients at the weights of the last layer. The cost is one
    more backward pass for each term and peer, from the loss to F only.

    Args:
        peers: P.
        terms: names of the terms that are compared with ``task``.
        decay: decay of the running means; all start at 0, which cancels in the ratio.
    """

    def __init__(self, peers: int, terms: Sequence[str], decay: float = 0.9) -> None:
        super().__init__()
        self.decay = decay
        for name in ("task", *terms):
            self.register_buffer(name, torch.zeros(peers))

    def update(self, losses: Mapping[str, Tensor], features: Mapping[int, Tensor]) -> None:
        """Update the means with the gradients of a step: losses ``(P,)`` by name, F by peer.

        The means of peers whose features have no graph, as in alternating updates, do not change.

        Raises:
            ValueError: a loss is not connected to the features in the graph.
        """
        for name, values in losses.items():
            norms = self.get_buffer(name)
            found = [norms[index] for index in range(len(norms))]
            for index, at in features.items():
                if at.requires_grad:
                    found[index] = _norm(values[index], at).to(norms)
            with torch.no_grad():
                norms.lerp_(torch.stack(found), 1 - self.decay)

    def ratio(self, term: str) -> Tensor:
        """The ratio of a term, ``(P,)``."""
        return self.get_buffer("task") / (self.get_buffer(term) + 1e-6)


def _norm(value: Tensor, at: Tensor) -> Tensor:
    problem = (
        "gradients at the last stage cannot be compared: peers that are compiled, or run in threads, keep the way from "
        "there to their logits to themselves; expected balance=False or plain peers"
    )
    try:
        (gradient,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        raise ValueError(f"{problem} ({error})") from error
    if gradient is None:
        raise ValueError(problem)
    norm: Tensor = gradient.norm()
    return norm
