"""Mutual contrastive learning (Yang, An, Cai, Xu, AAAI 2022, arXiv 2104.12565).

Peers learn by contrast which samples belong to one class, within their own embeddings and across the embeddings of two
peers, and learn the distributions of similarities from each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metamixer.core.ranges import Count, Positive, Weight
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.contrastive import (
    contrast,
    embed,
    over_others,
    positives,
    projector,
    similarities,
)
from metamixer.losses.functional import divergence, require, row_divergence, soft_cross_entropy


@dataclass(eq=False, repr=False)
class MCL(Loss):
    """Contrastive learning within and between peers, which also match their similarity distributions.

    ``L_i = CE + vcl VCL_i + soft_vcl SoftVCL_i + sum over j != i of (icl ICL_ij + soft_icl SoftICL_ij)``.

    ``v_i`` are the features of peer i after its projector (Linear-ReLU-Linear), scaled to length 1, and
    ``S_ij = v_i v_j^T / tau`` are the similarities of the samples of i (rows) to those of j (columns). VCL_i is the
    supervised contrastive loss of the rows of S_ii, and ICL_ij that of S_ij; both leave out the sample itself, as in
    the official code for CIFAR. SoftVCL_i = sum_j T^2 KL(S_jj || S_ii) and SoftICL_ij = T^2 KL(S_ji || S_ij) compare
    the softmaxes of rows, including the sample itself; the first argument is detached (as in the official code). S_ij
    contains the embeddings of both peers, and both get gradients from it, as in that code.

    Positives depend on labels. For mixed samples the weight of a pair is the inner product of its soft targets, which
    for labels equals the indicator of the paper (ours). Anchors without a positive contribute 0 (the official code
    divides by 0); ``train.per_class=2`` gives every image a positive, as do the batches of 64 classes x 2 in the paper.
    Peers are also compared with frozen peers, whose projectors learn through the losses of the others.

    Args:
        temperature: T of the soft terms and of the logits; 3 in the official code.
        tau: temperature of the similarities. 0.1, as in the official script for CIFAR and in the code of L-MCL; 0.07 in
            the script for ImageNet.
        vcl, soft_vcl, icl, soft_icl: weights of the four terms, as in the official commands.
        logits: also learn from the mean logits of all peers, by T^2 KL with weight 1. The official code does so for two
            networks; with more it teaches only the last one, here all of them.
        width: width of the embeddings; 128 in the official code.

    >>> outputs = Outputs(torch.zeros(2, 4, 10), features=(torch.ones(4, 6), torch.ones(4, 8)))
    >>> loss = MCL(logits=True)
    >>> loss.setup(outputs)
    >>> loss(outputs, torch.eye(10)[[0, 0, 1, 1]])["distill"]
    tensor([0., 0.])
    """

    needs = ("features", "per-class")

    temperature: Positive = 3.0
    tau: Positive = 0.1
    vcl: Weight = 0.1
    soft_vcl: Weight = 1.0
    icl: Weight = 0.1
    soft_icl: Weight = 1.0
    logits: bool = False
    width: Count = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.projectors = nn.ModuleList()
        self._made: object = None

    def setup(self, outputs: Outputs) -> None:
        """Create a projector for each peer, unless they exist."""
        require(outputs, "MCL", features=True)
        made = tuple(each.shape[1] for each in outputs.features)
        if made != self._made:
            self.projectors = nn.ModuleList(projector(features, self.width) for features in made)
            self.to(outputs.logits.device, outputs.logits.dtype)
            self._made = made

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Terms ``(P,)`` in nats, weighted: ``task``, ``vcl``, ``soft_vcl``, ``icl``, ``soft_icl`` and with ``logits``
        ``distill``."""
        require(outputs, "MCL", features=True)
        self.check_made(len(self.projectors), outputs)
        embeddings = embed(self.projectors, outputs.features)
        pairs = similarities(embeddings[:, None], embeddings[None], self.tau)  # [anchors' peer, keys' peer]
        own = torch.stack([pairs[peer, peer] for peer in range(outputs.peers)])
        hard = contrast(pairs, positives(targets)).mean(-1)
        soft = row_divergence(pairs.mT, pairs, self.temperature).mean(-1)  # S_ji is the transpose of S_ij
        mimic = row_divergence(own[None], own[:, None], self.temperature).mean(-1)  # [student, teacher]
        terms = {
            "task": soft_cross_entropy(outputs.logits, targets),
            "vcl": self.vcl * hard.diagonal(),
            "soft_vcl": self.soft_vcl * over_others(mimic),
            "icl": self.icl * over_others(hard),
            "soft_icl": self.soft_icl * over_others(soft),
        }
        if self.logits:
            terms["distill"] = divergence(outputs.logits.mean(0), outputs.logits, self.temperature)
        return terms
