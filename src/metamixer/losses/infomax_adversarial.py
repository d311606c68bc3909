"""Mutual information and an adversary between peers: what ties them sample by sample, and what ties them as a whole.

A loss of this package, put together from published parts. It is **not** the objective of MetaMixer (arXiv 2303.07951),
whose abstract and figure show mixing and mutual distillation; it goes with MetaMixer's mixing as with any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from metamixer.core.ranges import Count, Positive, Share, Weight, checked
from metamixer.core.types import Outputs, Terms
from metamixer.losses.base import Loss
from metamixer.losses.components.adversarial_examples import Pixels
from metamixer.losses.components.attacked_term import attacked_divergence
from metamixer.losses.components.feature_game import play, players
from metamixer.losses.components.gradient_balance import Balance
from metamixer.losses.components.mutual_information import Information
from metamixer.losses.components.pairs import agreement, last_maps, means, smallest_mean, trusted_divergence
from metamixer.losses.functional import learning, ramp_up, require, single, soft_cross_entropy, spread

Estimator = Literal["infonce", "vid", "jsd"]
Mode = Literal["features", "inputs", "none"]


class InfoMaxAdversarial(Loss):
    """Peers share information about each image and meet an adversary: ours, not MetaMixer's objective.

    ``L_i = CE + r w T^2 KL + r alpha L_MI + r_adv beta L_adv``, means over the others j: ours, not MetaMixer's.

    - ``KL(p_j || p_i)`` at temperature T, as in DML, the teacher detached.
    - ``L_MI(i, j)`` bounds the mutual information of the two peers' features from below; nothing flows into j.
      ``infonce``: ``-log exp(u_b.v_b / tau) / sum_c exp(u_b.v_c / tau)``, both directions, on projected features of
      length 1. ``jsd``: the Jensen-Shannon bound of the same critic. ``vid``: a Gaussian q(F_j | F_i), F what the last
      stages put out.
    - ``L_adv`` in mode ``features``: a least-squares discriminator D_i takes F_j for real and F_i for fake (as in AFD);
      peer i minimises ``(D_i(F_i) - 1)^2``. The term ``discriminator`` is what D_i minimises from the start. It is 0
      while D_i is right in more than 90 % of a batch; momentum and weight decay of the one optimizer go on.
    - ``L_adv`` in mode ``inputs``: ``T^2 KL(p_j(x) || p_i(x + d))``, x what peer i was shown, d inside of ``eps`` what
      raises ``KL(p_j(x) || p_i(x + d))`` most. One attack on each peer, with three peers or more on the mean over j. It
      is made in evaluation mode; the pass that is learned from is in training mode, and its batch statistics count.

    Information ties instances and not spaces, a discriminator ties distributions and not instances (our reasoning, and
    no paper's). Both make peers alike, so their weights are small and come late. With noisy labels there are two gates
    (``noise_rate``, ``confidence``), and ``mask_same_class`` should stay off. Stages of different sizes are averaged
    down to the smallest; for D, stages of different widths are projected to the least width, by layers that learn with
    their peers. Where the numbers of axes differ, the features before the last linear layers take the stages' place.

    ``watched``: ``information_nats`` (log B - NCE over all pairs, at most log B; for ``jsd`` the divergence, at most
    log 2; for ``vid`` an estimate for each number of F_j), ``agreement`` (the share of samples for which two peers name
    one class), ``discriminator_accuracy`` (0.5 to 0.8 is healthy), and with ``balance`` the weights.

    Args:
        temperature: T (3, as in ONE, OKDDip and MCL).
        weight: w, of the distillation.
        ramp_up: the share of training over which r rises (80 of 300 epochs, as in ONE, OKDDip and FFL).
        estimator: of the mutual information: ``infonce``, ``vid`` or ``jsd``.
        information_weight: alpha (0.1, as MCL's for contrast with hard labels; VID alone has 1).
        tau: temperature of the critic (0.1).
        mask_same_class: leave out negatives of the same class; with soft targets by the probability of it (ours).
        mode: of the adversary: ``features``, ``inputs`` or ``none``.
        adversarial_weight: beta; None: 0.05 in ``features``, 1 in ``inputs`` (ours; RSLAD has 5/6 beside 1/6).
        discriminator: weight of what the discriminators minimise: how fast they learn beside the networks (as in AFD).
        adversarial_start: the share of training before which beta is 0 in ``features``; from there it rises as r does
            (ours). ``inputs`` has all of beta from the start.
        balance: multiply alpha and beta by ``|dCE/dF_i| / |dL/dF_i|``, running means over some 10 steps, F_i the last
            stage, and cut the product off at 1 (ours). Three more backward passes of each peer, from the losses down
            to its last stage only. Not for ``inputs``.
        eps: the largest change of a pixel, of 1 (8/255).
        step: of each step of PGD (2/255).
        steps: 1: FGSM; more: PGD, each with a pass forward and back. 10 for networks that are to be robust.
        mean: of the normalised images' channels, for ``inputs``; :meth:`set_pixels` takes its place in a recipe's run.
        std: likewise.
        noise_rate: the share of wrong labels: CE then counts the 1 - rate of the samples whose loss is least, for each
            peer its own; co-teaching, where this is from, exchanges them.
        noise_ramp: the share of training over which 1 falls to 1 - rate (10 of 200 epochs in co-teaching).
        confidence: a teacher counts for KL, information and ``inputs`` only where its largest probability is above.

    >>> outputs = Outputs(torch.zeros(2, 4, 10), features=(torch.eye(4), torch.eye(4)))
    >>> loss = InfoMaxAdversarial(mode="none")
    >>> loss.setup(outputs)
    >>> terms = loss(outputs, torch.full((4, 10), 0.1))
    >>> list(terms), terms["distill"].tolist(), bool((loss.watched["information_nats"] < 1.3863).all())
    (['task', 'distill', 'information'], [0.0, 0.0], True)
    """

    needs = ("features", "stages")

    pixel_range: Tensor | None

    @checked
    def __init__(
        self,
        temperature: Positive = 3.0,
        weight: Weight = 1.0,
        ramp_up: Share = 80 / 300,
        estimator: Estimator = "infonce",
        information_weight: Weight = 0.1,
        tau: Positive = 0.1,
        mask_same_class: bool = False,
        mode: Mode = "features",
        adversarial_weight: Weight | None = None,
        discriminator: Weight = 0.01,
        adversarial_start: Share = 0.1,
        balance: bool = False,
        eps: Positive = 8 / 255,
        step: Positive = 2 / 255,
        steps: Count = 1,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        noise_rate: Share = 0.0,
        noise_ramp: Share = 0.05,
        confidence: Share = 0.0,
    ) -> None:
        super().__init__()
        if adversarial_weight is None:
            adversarial_weight = 0.05 if mode == "features" else 1.0
        if balance and mode == "inputs":
            raise ValueError("balance=True compares gradients at the features of one pass; mode='inputs' has another")
        self.temperature, self.weight, self.ramp_up = temperature, weight, ramp_up
        self.estimator, self.information_weight, self.tau = estimator, information_weight, tau
        self.mask_same_class = mask_same_class
        self.mode, self.adversarial_weight, self.adversarial_start = mode, adversarial_weight, adversarial_start
        self.balance = balance
        self.eps, self.step, self.steps = eps, step, steps
        self.noise_rate, self.noise_ramp, self.confidence = noise_rate, noise_ramp, confidence
        self.discriminator = discriminator
        self.transfers, self.discriminators = nn.ModuleList(), nn.ModuleDict()
        self.information: Information | None = None
        self.norms: Balance | None = None
        self._made: object = None
        self.register_buffer("pixel_range", None, persistent=False)
        if mean is not None or std is not None:
            self.set_pixels(mean or (), std or ())

    def set_pixels(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Say how images are normalised, one mean and one deviation a channel; pixels lie in [0, 1]."""
        self.pixel_range = torch.stack(Pixels.of(mean, std))

    def setup(self, outputs: Outputs) -> None:
        """Make what estimates the information, and the discriminators, unless they are there."""
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

        ``progress`` is the share of training that is done; None: all weights are at their full values.
        """
        self._check(outputs)
        largest = single(outputs.logits.detach()).softmax(-1).amax(-1)
        trusted = (largest > self.confidence).to(largest.dtype)  # [teacher, sample]
        self.watched = {"agreement": agreement(outputs)}
        found = {
            "task": self._task(outputs, targets, progress),
            "information": self._information(outputs, targets, trusted),
        }
        telling: dict[str, Tensor] = {}
        if self.mode == "features":
            maps = last_maps(outputs)
            found["adversarial"], played, accuracy = play(self.transfers, self.discriminators, maps, outputs)
            telling["discriminator"] = self.discriminator * played
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
        return {"task": terms.pop("task"), "distill": distill, **terms, **telling}

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

    def _task(self, outputs: Outputs, targets: Tensor, progress: float | Tensor | None) -> Tensor:
        logits = learning(outputs.logits, outputs)
        if self.noise_rate == 0:
            return soft_cross_entropy(logits, targets)
        done: float | Tensor = 1.0
        if progress is not None and self.noise_ramp > 0:
            done = progress / self.noise_ramp
            done = done.clamp(max=1) if isinstance(done, Tensor) else min(done, 1.0)
        each = soft_cross_entropy(logits[:, :, None], targets[:, None])  # (L, B)
        return smallest_mean(each, 1 - self.noise_rate * done)

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
        fixed = {"task": 1.0, "information": self.information_weight, "adversarial": self.adversarial_weight}
        if self.norms is None:
            return fixed
        if self.training and torch.is_grad_enabled():
            self.norms.update(losses, {i: outputs.stages[i][-1] for i in outputs.learners})
        balanced = {name: (fixed[name] * self.norms.ratio(name)).clamp(0, 1) for name in losses if name != "task"}
        self.watched |= {f"{name}_weight": value for name, value in balanced.items()}
        return {**fixed, **balanced}
