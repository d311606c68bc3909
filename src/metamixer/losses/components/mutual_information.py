"""Lower bounds on the mutual information between features of two networks, in nats, per sample.

Maximising a bound aligns what two networks represent of the *same* image, in whatever coordinates each represents it.
Row b of both tensors belongs to the same image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metamixer.losses.components.contrastive import embed, projector, similarities
from metamixer.losses.functional import single


def negatives(scores: Tensor, targets: Tensor | None = None) -> Tensor:
    """``(B, B) -> (B, B)``: the weight of each pair as a negative: 1, and 0 on the diagonal.

    With targets ``(B, C)`` it is the probability that labels drawn from the two targets differ: 0 for the same class, 1
    for different classes, and in between for soft targets (our interpretation of "leave out negatives of the same
    class" for mixed images).
    """
    counted = 1 - torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    if targets is None:
        return counted
    with torch.autocast(targets.device.type, enabled=False):
        overlap = (targets @ targets.mT).to(scores.dtype)
    return counted * (1 - overlap).clamp(min=0)


def info_nce(scores: Tensor, counted: Tensor) -> Tensor:
    """``(B, B), (B, B) -> (B,)``: -log(exp s_bb / sum_c w_bc exp s_bc), the mean over both directions, in nats.

    Args:
        scores: scores of a critic: ``[b, c]`` is high if row b of one network and row c of the other match.
        counted: the off-diagonal weights w, from :func:`negatives`; w_bb is 1.
    """
    weighed = scores + (counted + torch.eye(len(scores), dtype=scores.dtype, device=scores.device)).log()
    return (weighed.logsumexp(0) + weighed.logsumexp(1)) / 2 - scores.diagonal()


def nce_information(scores: Tensor) -> Tensor:
    """``(B, B) -> ()``: log B - NCE (CPC, arXiv 1807.03748), at most log B, and in expectation at most the information.

    Computed over all pairs: without some negatives it is not a bound.

    >>> nce_information(torch.zeros(4, 4)), nce_information(100 * torch.eye(4))
    (tensor(0.), tensor(1.3863))
    """
    return math.log(len(scores)) - info_nce(scores, negatives(scores)).mean()


def jensen_shannon(scores: Tensor, counted: Tensor) -> Tensor:
    """``(B, B), (B, B) -> (B,)``: softplus(-s_bb) + the weighted mean over a of softplus(s_ab) (MIMKD, 2110.15946).

    For each sample b of the second network, with the samples a of the first. If no negative counts, only the first term
    is left.
    """
    apart = (counted * F.softplus(scores)).sum(0) / counted.sum(0).clamp(min=1e-6)
    return F.softplus(-scores.diagonal()) + apart


def js_information(scores: Tensor) -> Tensor:
    """``(B, B) -> ()``: a lower bound on the Jensen-Shannon divergence of p(u, v) and p(u) p(v), at most log 2 nats.

    It grows with the mutual information, but its value is not the mutual information in nats.

    >>> bool(js_information(torch.zeros(4, 4)).abs() < 1e-6), js_information(200 * torch.eye(4) - 100)
    (True, tensor(0.6931))
    """
    return math.log(2) - jensen_shannon(scores, negatives(scores)).mean() / 2


class Gaussian(nn.Module):
    """q(t | s) = N(mu(s), diag(variance)): I(t; s) >= H(t) + E log q(t | s) (VID, arXiv 1904.05835).

    mu consists of three 1x1 convolutions without bias, with ReLU between them, implemented as linear layers over the
    channels, so that maps with any number of axes and vectors are accepted. Each channel has a variance,
    softplus(rho) + 1e-5, initially 5.0. Layers and values are those of the RepDistiller code.

    Args:
        channels: channels of s.
        target: channels of t.
        variance: initial variance.
    """

    floor = 1e-5

    def __init__(self, channels: int, target: int, variance: float = 5.0) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Linear(channels, target, bias=False),
            nn.ReLU(),
            nn.Linear(target, target, bias=False),
            nn.ReLU(),
            nn.Linear(target, target, bias=False),
        )
        self.rho = nn.Parameter(torch.full((target,), math.log(math.expm1(variance - self.floor))))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """``(B, C, ...), (B, D, ...) -> (B,)``: (t - mu(s))^2 / (2 variance) + log(variance) / 2, the mean over t.

        This is -log q in nats per element of t, without the constant log(2 pi) / 2.
        """
        variance = F.softplus(self.rho) + self.floor
        error = single(self.mean(_rows(own))) - single(_rows(other))
        return (error.square() / variance + variance.log()).flatten(1).mean(1) / 2


def gaussian_information(losses: Tensor, other: Tensor) -> Tensor:
    """Losses ``(B,)`` of :class:`Gaussian` and t ``(B, D, ...) -> ()``: nats per element of t.

    H(t) is unknown. It is replaced by the entropy of a Gaussian with the variance of the batch, which is never below
    H(t). The result is therefore an estimate and not a bound; it is exact if t and s are Gaussian.
    """
    rows = single(_rows(other)).flatten(0, -2)
    entropy = (1 + rows.var(0, correction=0).clamp(min=Gaussian.floor).log()) / 2
    return entropy.mean() - losses.mean()


class Information(nn.Module):
    """The information of the features of each learner about those of each other peer: losses and an estimate.

    The features of the other peer are detached. The information is symmetric, so a learner still gets the direction of
    the joint gradient, with half its size. A frozen peer has no loss, so its projector is trained by the peers that
    learn from it.

    Args:
        estimator: ``infonce`` or ``jsd``, on cosines of projected features divided by ``tau``, or ``vid``.
        widths: channels of the features of each peer.
        learners: the peers that learn.
        tau: temperature of the critic.
    """

    def __init__(self, estimator: str, widths: Sequence[int], learners: Sequence[int], tau: float) -> None:
        super().__init__()
        self.estimator, self.tau = estimator, tau
        self.pairs = [(i, j) for i in learners for j in range(len(widths)) if i != j]
        self.learners = tuple(learners)
        self.projectors, self.gaussians = nn.ModuleList(), nn.ModuleDict()
        if estimator == "vid":
            self.gaussians.update({f"{i}-{j}": Gaussian(widths[i], widths[j]) for i, j in self.pairs})
        else:
            self.projectors.extend(projector(width, 128) for width in widths)

    def forward(
        self, features: Sequence[Tensor], targets: Tensor | None = None
    ) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Features ``(B, D_p, ...)`` -> learner i, peer j, loss ``(B,)``, information ``()`` for each pair.

        With targets ``(B, C)``, negatives of the same class are left out of the loss, but not of the information.
        """
        constant = [each.detach() for each in features]
        if self.estimator == "vid":
            for i, j in self.pairs:
                losses = self.gaussians[f"{i}-{j}"](features[i], constant[j])
                yield i, j, losses, gaussian_information(losses.detach(), constant[j])
            return
        own = [features[i] if i in self.learners else each for i, each in enumerate(constant)]
        embedded = embed(self.projectors, own)
        loss, number = (info_nce, nce_information) if self.estimator == "infonce" else (jensen_shannon, js_information)
        for i, j in self.pairs:
            other = embedded[j].detach() if j in self.learners else embedded[j]
            scores = similarities(embedded[i], other, self.tau)
            yield i, j, loss(scores, negatives(scores, targets)), number(scores.detach())


def _rows(features: Tensor) -> Tensor:
    """``(B, C, ...) -> (B, positions, C)``; vectors are returned unchanged."""
    return features.flatten(2).transpose(1, 2) if features.ndim > 2 else features
