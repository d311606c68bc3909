"""Divergence from the other peers' predictions on adversarial examples."""

from __future__ import annotations

import torch
from torch import Tensor

from metamixer.core.types import Outputs
from metamixer.losses.components.adversarial_examples import Pixels, perturb
from metamixer.losses.components.pairs import others
from metamixer.losses.functional import row_divergence


def attacked_divergence(
    outputs: Outputs, trusted: Tensor, pixels: Pixels, temperature: float, *, eps: float, step: float, steps: int
) -> Tensor:
    """``(L,)``: the mean over j of ``T^2 KL(p_j(x) || p_i(x + d))``, where d maximises the sum of ``KL(p_j || p_i)``.

    Args:
        outputs: outputs of a cohort, whose ``run`` is called.
        trusted: ``(P, B)``, the weight of each teacher for each sample.
        pixels: the range of normalised pixels.
        temperature: T of the loss; the attack uses 1.
        eps, step, steps: as in :func:`~metamixer.losses.components.adversarial_examples.perturb`.
    """
    run = outputs.run
    assert run is not None  # noqa: S101
    losses = []
    for i in outputs.learners:
        weights = torch.stack([trusted[j] for j in others(i, outputs)])
        teachers = torch.stack([outputs.logits[j].detach() for j in others(i, outputs)])

        def apart(images: Tensor, of: Tensor = teachers, weights: Tensor = weights, i: int = i) -> Tensor:
            return (weights * row_divergence(of, run(i, images, training=False)[None], 1.0)).sum()

        changed = perturb(apart, outputs.images[i], pixels, eps=eps, step=step, steps=steps)
        losses.append((weights * row_divergence(teachers, run(i, changed)[None], temperature)).mean())
    return torch.stack(losses)
