"""Small-loss selection: leave out the samples with the largest losses, for data with wrong labels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metamixer.core.ranges import Share, check_fields
from metamixer.core.types import Outputs, RunPeer
from metamixer.losses.functional import finite, linear_ramp


@dataclass(frozen=True)
class SmallLoss:
    """Selects the samples with the smallest losses.

    Networks learn clean labels before wrong ones, so samples with a small loss are likely to be labelled correctly. Of
    n samples, the ``max(1, floor((1 - r(t)) n))`` with the smallest loss are kept, and the method computes its loss
    from these only. ``r(t) = rate * min(t / ramp, 1)`` at the share t of training; this is
    ``R(T) = 1 - min(T / T_k * tau, tau)`` of co-teaching (Han et al., NeurIPS 2018, arXiv 1804.06872).

    The loss of a sample is its cross-entropy with its mixed target, averaged over the peers that learn. All peers share
    one selection, as in JoCoR (Wei et al., CVPR 2020, arXiv 2003.02752), because methods that compare peers need the
    same samples from each. In co-teaching two networks select for each other, which does not extend to P peers.

    Args:
        rate: share that is left out at the end: tau, the assumed share of wrong labels.
        ramp: share of training over which it rises from 0; 10 of 200 epochs in co-teaching.

    >>> outputs = Outputs(torch.tensor([[[4.0, 0.0], [0.0, 4.0]]]))
    >>> SmallLoss(0.5)(outputs, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), None)[0].logits
    tensor([[[4., 0.]]])
    """

    rate: Share
    ramp: Share = 0.05

    def __post_init__(self) -> None:
        check_fields(self)

    def count(self, samples: int, progress: float | None) -> int:
        """The number of samples to keep at the share ``progress`` of training; None: at its end."""
        rate = self.rate * float(linear_ramp(progress, self.ramp))
        return max(1, int((1 - rate) * samples + 1e-4))  # in floating point 1 - 0.2 may be below 0.8

    def __call__(self, outputs: Outputs, targets: Tensor, progress: float | None) -> tuple[Outputs, Tensor]:
        """Outputs and targets ``(B, C)`` of the selected samples, in the order of the batch."""
        kept = self.count(len(targets), progress)
        if kept == len(targets):
            return outputs, targets
        with torch.no_grad():
            each = -(targets * finite(outputs.logits, targets).log_softmax(-1)).sum(-1)  # (P, B)
            mean = torch.stack([each[peer] for peer in outputs.learners]).mean(0)
            # NaN is kept, so that the loss checks find it.
            chosen = mean.nan_to_num(nan=-torch.inf).argsort(stable=True)[:kept].sort().values
        return rows_of(outputs, chosen), targets[chosen]


def rows_of(outputs: Outputs, chosen: Tensor) -> Outputs:
    """The outputs of the samples ``chosen`` ``(N,)``."""
    return replace(
        outputs,
        logits=outputs.logits[:, chosen],
        stages=tuple(tuple(stage[chosen] for stage in stages) for stages in outputs.stages),
        features=tuple(each[chosen] for each in outputs.features),
        images=tuple(each[chosen] for each in outputs.images),
        run=None if outputs.run is None else _run_of(outputs, outputs.run, chosen),
    )


def _run_of(outputs: Outputs, run: RunPeer, chosen: Tensor) -> RunPeer:
    """Runs a peer with other images in place of the selected ones; their mixing partners do not change."""

    def again(peer: int, images: Tensor, training: bool = True) -> Tensor:
        everyone = outputs.images[peer].detach().index_copy(0, chosen, images)
        return run(peer, everyone, training=training)[chosen]

    return again
