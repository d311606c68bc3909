"""The settings of InfoMaxAdversarial: their order, which recipes are identified by, and the gates against noise."""

import math

import pytest
import torch

from metamixer import InfoMaxAdversarial
from metamixer.config.settings_table import documented
from metamixer.core.ranges import model_of
from metamixer.losses.components.infomax_settings import NoiseSettings
from tests.oracle import draw

NAMES = [
    "temperature", "weight", "ramp_up", "estimator", "information_weight", "tau", "mask_same_class", "mode",
    "adversarial_weight", "discriminator", "adversarial_start", "balance", "eps", "step",
    "steps", "mean", "std", "noise_rate", "noise_ramp", "confidence",
]  # fmt: skip


def test_settings_keep_their_order_and_are_documented():
    assert list(model_of(InfoMaxAdversarial).model_fields) == NAMES
    meanings = documented(InfoMaxAdversarial)
    assert all(meanings[name] for name in NAMES)


@pytest.mark.parametrize(("progress", "kept"), [(None, 3), (0.0, 5), (0.05, 4), (0.1, 3), (1.0, 3)])
def test_only_the_smallest_losses_count(progress, kept):
    logits, targets = draw(2, 5, 3), draw(5, 3, seed=1).softmax(-1)
    found = NoiseSettings(noise_rate=0.4, noise_ramp=0.1).task(logits, targets, progress)
    for peer in range(2):
        losses = []
        for row, target in zip(logits[peer].tolist(), targets.tolist(), strict=True):
            log_sum = math.log(sum(math.exp(value) for value in row))
            losses.append(-sum(t * (value - log_sum) for t, value in zip(target, row, strict=True)))
        assert found[peer].item() == pytest.approx(sum(sorted(losses)[:kept]) / kept, abs=1e-12)


def test_without_noise_it_is_the_mean():
    logits, targets = draw(2, 5, 3), draw(5, 3, seed=1).softmax(-1)
    wanted = -(targets * logits.log_softmax(-1)).sum(-1).mean(-1)
    torch.testing.assert_close(NoiseSettings().task(logits, targets, 0.5), wanted)


def test_a_teacher_counts_where_it_is_sure():
    logits = torch.tensor([[[2.0, 0.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 9.0]]])  # 0.88, 0.62; 0.5, 1.0
    assert NoiseSettings(confidence=0.7).trusted(logits).tolist() == [[1, 0], [0, 1]]
    assert NoiseSettings().trusted(logits).tolist() == [[1, 1], [1, 1]]
