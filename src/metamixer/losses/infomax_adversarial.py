"""Instance-level (mutual information) and distribution-level (adversarial) alignment between peers.

A loss of this package, composed of published parts. It is **not** the objective of MetaMixer (arXiv 2303.07951), whose
abstract and figure show mixing and mutual distillation; it can be combined with the mixing of MetaMixer and any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.adversarial_examples import Pixels
from metamixer.losses.components.attacked_term import attacked_divergence
from metamixer.losses.components.feature_game import play, players
from metamixer.losses.components.gradient_balance import Balance
from metamixer.losses.components.infomax_settings import (
    AdversarySettings,
    AttackSettings,
    DistillationSettings,
    InformationSettings,
    NoiseSettings,
)
from metamixer.losses.components.mutual_information import Information
from metamixer.losses.components.pairs import agreement, last_maps, means, trusted_divergence
from metamixer.losses.functional import learning, ramp_up, require, spread


@dataclass(eq=False, repr=False)
class InfoMaxAdversarial(
    NoiseSettings, AttackSettings, AdversarySettings, InformationSettings, DistillationSettings, Loss
):
    """Mutual information and adversarial alignment between peers; ours, not the objective of MetaMixer.

    ``L_i = CE + r w T^2 KL + r alpha L_MI + r_adv beta L_adv``, with means over the other peers j.

    - ``KL(p_j || p_i)`` at temperature T, as in DML, with the teacher detached.
    - ``L_MI(i, j)`` maximises a lower bound on the mutual information of the features of the two peers; those of j are
      detached. ``infonce``: ``-log exp(u_b.v_b / tau) / sum_c exp(u_b.v_c / tau)``, both directions, on projected
      features of length 1. ``jsd``: the Jensen-Shannon bound of the same critic. ``vid``: a Gaussian q(F_j | F_i),
      where F is the output of the last stage.
    - ``L_adv`` in mode ``features``: for a least-squares discriminator D_i, F_j is real and F_i is fake (as in AFD);
      peer i minimises ``(D_i(F_i) - 1)^2``. The term ``discriminator`` is the loss of D_i, from the start of training.
      It is 0 while the accuracy of D_i in a batch is above 90 %; momentum and weight decay of the shared optimizer
      still apply.
    - ``L_adv`` in mode ``inputs``: ``T^2 KL(p_j(x) || p_i(x + d))``, where x is the input of peer i and d, with
      ``|d| <= eps``, maximises ``KL(p_j(x) || p_i(x + d))``. There is one attack on each peer, with three or more peers
      on the mean over j. The attack runs in evaluation mode, the pass with x + d in training mode, and that pass
      updates the batch statistics.

    Information aligns instances rather than spaces; a discriminator aligns distributions rather than instances (our
    reasoning, not from a paper). Both make peers similar, so their weights are small and set in late. Two settings
    handle noisy labels (``noise_rate``, ``confidence``); with them ``mask_same_class`` should be off. Stages of
    different sizes are average-pooled to the smallest; for D, stages of different widths are projected to the smallest
    width by layers that learn with their peers. If the numbers of axes differ, the features before the last linear
    layer replace the stages.

    The settings are those of the five base classes, all of them keyword arguments.

    ``watched``: ``information_nats`` (log B - NCE over all pairs, at most log B; for ``jsd`` the divergence, at most
    log 2; for ``vid`` an estimate per element of F_j), ``agreement`` (the share of samples for which two peers predict
    the same class), ``discriminator_accuracy`` (0.5 to 0.8 is healthy), and with ``balance`` the weights.

    >>> outputs = Outputs(torch.zeros(2, 4, 10), features=(torch.eye(4), torch.eye(4)))
    >>> loss = InfoMaxAdversarial(mode="none")
    >>> loss.setup(outputs)
    >>> terms = loss(outputs, torch.full((4, 10), 0.1))
    >>> list(terms), terms["distill"].tolist(), bool((loss.watched["information_nats"] < 1.3863).all())
    (['task', 'distill', 'information'], [0.0, 0.0], True)
    """

    needs = ("features", "stages")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adversarial_weight is None:
            self.adversarial_weight = 0.05 if self.mode == "features" else 1.0
        if self.balance and self.mode == "inputs":
            raise ValueError("balance=True compares gradients at the features of one pass; mode='inputs' has another")
        self.transfers, self.discriminators = nn.ModuleList(), nn.ModuleDict()
        self.information: Information | None = None
        self.norms: Balance | None = None
        self._made: object = None
        self.pixel_range: Tensor | None
        self.register_buffer("pixel_range", None, persistent=False)
        if self.mean is not None or self.std is not None:
            self.set_pixels(self.mean or (), self.std or ())

    def set_pixels(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the normalisation of images, mean and standard deviation per channel, for pixels in [0, 1]."""
        self.pixel_range = torch.stack(Pixels.of(mean, std))

    def setup(self, outputs: Outputs) -> None:
        """Create the estimators of information and the discriminators, unless they exist."""
        self._check(outputs)
        features = [each.shape[1] for each in (last_maps(outputs) if self.estimator == "vid" else outputs.features)]
        stages = [(each.shape[1], each.ndim - 2) for each in last_maps(outputs)] if self.mode == "features" else []
        made = outputs.learners, features, stages
        if made == self._made:
            return
        self.information = Information(self.estimator, features, outputs.learners, self.tau)
        if self.mode == "features":
            self.transfers, self.discriminators = players(stages, outputs)
        if self.balance:
            self.norms = Balance(outputs.peers, ["information", *(["adversarial"] if self.mode == "features" else [])])
        self.to(outputs.logits.device)
        self._made = made

    def terms(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Terms:
        """Terms ``(P,)``: ``task``, ``distill``, ``information``; ``adversarial`` unless the mode is ``none``;
        ``discriminator`` in mode ``features``.

        ``progress`` is the share of training that is done; None: full weights.
        """
        self._check(outputs)
        trusted = self.trusted(outputs.logits)
        self.watched = {"agreement": agreement(outputs)}
        found = {
            "task": self.task(learning(outputs.logits, outputs), targets, progress),
            "information": self._information(outputs, targets, trusted),
        }
        discriminator: dict[str, Tensor] = {}
        if self.mode == "features":
            maps = last_maps(outputs)
            found["adversarial"], played, accuracy = play(self.transfers, self.discriminators, maps, outputs)
            discriminator["discriminator"] = self.discriminator * played
            self.watched["discriminator_accuracy"] = accuracy
        elif self.mode == "inputs":
            pixels, limits = Pixels(*cast(Tensor, self.pixel_range)), {"eps": self.eps, "step": self.step}
            found["adversarial"] = attacked_divergence(
                outputs, trusted, pixels, self.temperature, **limits, steps=self.steps
            )
        losses = {name: spread(each, outputs) for name, each in found.items()}
        ramp = ramp_up(progress, self.ramp_up)
        over_time = {"task": 1.0, "information": ramp, "adversarial": self._late(progress)}
        weights = self._weights(outputs, losses)
        terms = {name: weights[name] * over_time[name] * each for name, each in losses.items()}
        distill = self.weight * ramp * trusted_divergence(outputs, trusted, self.temperature)
        return {"task": terms.pop("task"), "distill": distill, **terms, **discriminator}

    def _check(self, outputs: Outputs) -> None:
        name = "InfoMaxAdversarial"
        stages = self.estimator == "vid" or self.mode == "features" or self.balance
        require(outputs, name, features=True, stages=int(stages))
        if outputs.peers < 2:
            raise ValueError(f"{name} compares peers: expected two or more")
        if self.mode == "inputs" and (outputs.run is None or not outputs.images):
            raise ValueError("mode='inputs' runs the peers again: outputs of a Cohort can, these cannot")
        if self.mode == "inputs" and self.pixel_range is None:
            raise ValueError(
                "mode='inputs' changes pixels: set_pixels(mean, std), or mean=[...] and std=[...], say how images are "
                "normalised (0 and 1 for each channel, where they are not)"
            )

    def _information(self, outputs: Outputs, targets: Tensor, trusted: Tensor) -> Tensor:
        if self.information is None:
            raise ValueError("InfoMaxAdversarial has no parts yet: setup(outputs) makes them")
        features = last_maps(outputs) if self.estimator == "vid" else outputs.features
        losses: dict[int, list[Tensor]] = {i: [] for i in outputs.learners}
        nats: dict[int, list[Tensor]] = {i: [] for i in outputs.learners}
        for i, j, each, number in self.information(features, targets if self.mask_same_class else None):
            losses[i].append((trusted[j] * each).mean())
            nats[i].append(number)
        self.watched["information_nats"] = means(nats.values()).detach()
        return means(losses.values())

    def _late(self, progress: float | Tensor | None) -> float | Tensor:
        """The weight of the adversarial term over time."""
        if progress is None or self.mode != "features":
            return 1.0
        after = progress - self.adversarial_start
        if isinstance(after, Tensor):
            return (after >= 0) * ramp_up(after.clamp(min=0), self.ramp_up)
        return ramp_up(after, self.ramp_up) if after >= 0 else 0.0

    def _weights(self, outputs: Outputs, losses: Mapping[str, Tensor]) -> Mapping[str, float | Tensor]:
        beta = cast(float, self.adversarial_weight)
        fixed = {"task": 1.0, "information": self.information_weight, "adversarial": beta}
        if self.norms is None:
            return fixed
        if self.training and torch.is_grad_enabled():
            self.norms.update(losses, {i: outputs.stages[i][-1] for i in outputs.learners})
        balanced = {name: (fixed[name] * self.norms.ratio(name)).clamp(0, 1) for name in losses if name != "task"}
        self.watched |= {f"{name}_weight": value for name, value in balanced.items()}
        return {**fixed, **balanced}
