"""Layer-wise mutual contrastive learning (Yang, An, Zhou, Zhuang, Xu, Zhang, TPAMI 2023, arXiv 2207.11518).

MCL between all pairs of stages of two peers. Each stage has an early exit; together the exits teach the final one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from metamixer.core.ranges import Count, Positive, Weight
from metamixer.core.types import Outputs, Terms, pooled
from metamixer.losses.base import Loss
from metamixer.losses.components.contrastive import contrast, embed, positives, projector, similarities
from metamixer.losses.functional import divergence, layer, learning, require, row_divergence, single, soft_cross_entropy


@dataclass(eq=False, repr=False)
class LMCL(Loss):
    """Contrastive learning between all pairs of stages of two peers; early exits teach the final one.

    Cross-entropy of every exit, MCL between the stages of peers, and ``sum_j T^2 KL(aggregated_j || final_i)``.

    Each of the last ``stages`` stages except the last one has an exit: a refinement to the width of the last stage, and
    a classifier. An attention network of each peer (a softmax over its exits, computed from their features) combines
    the logits of the exits and the final logits to ``aggregated_i``, which learns from the labels. The final logits of
    each peer learn from the detached aggregated logits of all peers, including its own. The four terms of
    :class:`~metamixer.losses.MCL` are summed over all other peers j and all pairs of a stage k of i and a stage z of j.
    Every anchor is weighted by ``w = sigmoid(cos(linear(f_ik), linear(f_jz)))``, which lies in (0.27, 0.73). The terms
    count twice, as in the official code, which visits every pair of peers in both orders with all four terms of both.
    All else is as in that code.

    **What replaces the meta-optimisation of the paper.** The paper trains the network of w by bilevel optimisation:
    every 50 steps two inner updates on the contrastive terms, and an outer gradient of the cross-entropy through them.
    Here the same backward pass trains it: ``weighting`` is the mean of ``w r - log(w) / 2``, where r, detached, is the
    loss of the pair divided by the mean loss of all pairs of stages of the two peers. The minimum is at
    ``w = 1 / (2 r)``: an average pair has the weight 1/2, a better match more and a worse match less. This is weighting
    by uncertainty (arXiv 1705.07115), but relative, so that weights do not drift as the losses decrease. Minimising
    ``w L`` alone would choose the smallest weight for all pairs. No gradient of w reaches the peers, as in the paper.
    Published results are no evidence for this weighting.

    Also ours: a refinement has one 3x3 convolution of stride 2 with batch norm for each later stage (the official code
    repeats the stages themselves), and soft targets are handled as in MCL. Exits of frozen peers learn; their
    cross-entropy is divided among the peers that learn. None of the parts is deployed with a peer.

    Args:
        temperature: T of soft terms and logits; 3 in the official code.
        tau: temperature of the similarities; 0.1 in the official code.
        vcl, soft_vcl, icl, soft_icl: weights of the four terms, as in the official code.
        stages: number of last stages that are compared; 3 in the official code. All stages if there are fewer.
        width: width of the embeddings and of the projections that w compares; 128 in the official code.

    >>> stages = torch.ones(4, 8, 2, 2), torch.ones(4, 6)
    >>> same = Outputs(torch.zeros(2, 4, 10), (stages, stages), (torch.ones(4, 6),) * 2)
    >>> loss = LMCL()
    >>> loss.setup(same)
    >>> list(loss(same, torch.eye(10)[[0, 0, 1, 1]]))
    ['task', 'exits', 'distill', 'vcl', 'soft_vcl', 'icl', 'soft_icl', 'weighting']
    """

    needs = ("features", "stages", "per-class")

    temperature: Positive = 3.0
    tau: Positive = 0.1
    vcl: Weight = 0.1
    soft_vcl: Weight = 1.0
    icl: Weight = 0.1
    soft_icl: Weight = 1.0
    stages: Count = 3
    width: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = {name: getattr(self, name) for name in ("vcl", "soft_vcl", "icl", "soft_icl")}
        self.exits, self.projectors, self.trust = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self._made: object = None

    def setup(self, outputs: Outputs) -> None:
        """Create exits, attention, projectors and the network of w for each peer, unless they exist."""
        require(outputs, "LMCL", features=True, stages=1)
        maps, classes = self._maps(outputs), outputs.logits.shape[-1]
        ends = [each.shape[1] for each in outputs.features]
        made = [[(each.shape[1], each.ndim) for each in own] for own in maps], ends, classes
        if made == self._made:
            return
        self.exits = nn.ModuleList(_Exits(own, end, classes) for own, end in zip(maps, ends, strict=True))
        # Exits have the width of the last stage; the features of the final exit are those of the network.
        widths = [[own[-1].shape[1]] * (len(own) - 1) + [end] for own, end in zip(maps, ends, strict=True)]
        self.projectors = nn.ModuleList(projector(each, self.width) for own in widths for each in own)
        self.trust = nn.ModuleList(nn.Linear(each, self.width) for own in widths for each in own)
        self.to(outputs.logits.device, outputs.logits.dtype)
        self._made = made

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Terms ``(P,)``, weighted and named as above; ``exits`` sums the losses of exits and aggregated logits."""
        require(outputs, "LMCL", features=True, stages=1)
        self.check_made(len(self.exits), outputs)
        maps = self._maps(outputs)
        found = [exits(*each) for exits, *each in zip(self.exits, maps, outputs.features, outputs.logits, strict=True)]
        aggregated = torch.stack([logits[-1] for _, logits in found])
        entropies = torch.stack([soft_cross_entropy(logits, targets).sum() for _, logits in found])
        taught = divergence(aggregated[None], outputs.logits[:, None], self.temperature).sum(1)  # [student, teacher]
        shared = entropies.sum() - learning(entropies, outputs).sum() if outputs.frozen else 0.0
        return {
            "task": soft_cross_entropy(learning(outputs.logits, outputs), targets),
            "exits": learning(entropies, outputs) + shared / len(outputs.learners),
            "distill": taught,
            **self._contrast(outputs, [features for features, _ in found], positives(targets)),
        }

    def _maps(self, outputs: Outputs) -> list[tuple[Tensor, ...]]:
        count = min(self.stages, *map(len, outputs.maps))
        return [stages[-count:] for stages in outputs.maps]

    def _contrast(self, outputs: Outputs, features: list[list[Tensor]], same: Tensor) -> dict[str, Tensor]:
        flat = [each for own in features for each in own]
        shape = (outputs.peers, len(features[0]), -1, self.width)
        embeddings = embed(self.projectors, flat).view(shape)  # (P, K, B, width)
        trust = embed(self.trust, [each.detach() for each in flat]).view(shape)
        own = similarities(embeddings, embeddings, self.tau)
        none = own.new_zeros(())
        found: dict[str, list[Tensor]] = {name: [] for name in (*self.weights, "weighting")}
        for i in outputs.learners:
            sums = dict.fromkeys(found, none)
            for j in range(outputs.peers):
                if j == i:
                    continue
                pairs = similarities(embeddings[i][:, None], embeddings[j][None], self.tau)  # (K, K, B, B)
                losses = {
                    "vcl": contrast(own[i], same)[:, None],
                    "soft_vcl": row_divergence(own[j][None], own[i][:, None], self.temperature),
                    "icl": contrast(pairs, same),
                    "soft_icl": row_divergence(pairs.mT, pairs, self.temperature),
                }
                losses = {name: weight * losses[name] for name, weight in self.weights.items()}
                w = (trust[i][:, None] * trust[j][None]).sum(-1).sigmoid()  # (K, K, B)
                for name, loss in losses.items():
                    sums[name] = sums[name] + 2 * (w.detach() * loss).mean(-1).sum()
                whole = sum(losses.values(), none).detach()
                ratio = whole / whole.mean().clamp_min(1e-12)
                sums["weighting"] = sums["weighting"] + (w * ratio - w.log() / 2).mean()
            for name, value in sums.items():
                found[name].append(value)
        return {name: torch.stack(values) for name, values in found.items()}


class _Exits(nn.Module):
    """The exits of a peer, one for each stage except the last, and the attention over these and the final exit."""

    def __init__(self, maps: Sequence[Tensor], features: int, classes: int) -> None:
        super().__init__()
        last = maps[-1].shape[1]
        before = len(maps) - 1
        self.refine = nn.ModuleList(_refinement(maps[stage:]) for stage in range(before))
        self.classify = nn.ModuleList(nn.Linear(last, classes) for _ in range(before))
        self.attend = nn.Sequential(
            nn.Linear(before * last + features, features), nn.ReLU(), nn.Linear(features, len(maps))
        )

    def forward(self, maps: Sequence[Tensor], features: Tensor, logits: Tensor) -> tuple[list[Tensor], Tensor]:
        """K stages ``(B, C_k, ...)``, final features ``(B, D)`` and logits ``(B, classes)`` -> the features of all K
        exits, and ``(K, B, classes)``: the logits of the early exits, then the aggregated ones."""
        early = [single(pooled(refine(single(each)))) for refine, each in zip(self.refine, maps, strict=False)]
        exits = [single(classify(each)) for classify, each in zip(self.classify, early, strict=True)]
        own = [*early, single(features)]
        shares = single(self.attend(torch.cat(own, -1))).softmax(-1)
        aggregated = (shares.mT[:, :, None] * torch.stack([*exits, logits])).sum(0)
        return own, torch.stack([*exits, aggregated])


def _refinement(maps: Sequence[Tensor]) -> nn.Sequential:
    """Layers from the output of a stage, the first of ``maps``, to the number of channels of the last of them."""
    axes = maps[0].ndim - 2
    norm = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[min(axes, 3)]
    steps: list[nn.Module] = []
    for before, after in pairwise(maps):
        channels = after.shape[1]
        steps += [layer(before.shape[1], channels, axes, size=3, stride=2), norm(channels), nn.ReLU()]
    return nn.Sequential(*steps)
