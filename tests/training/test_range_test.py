"""The range test: rates that rise as they should, and one result, the same again and in all processes, or none."""

import math

import numpy as np
import pytest

from metamixer import DML, MetaMixer, Optim
from metamixer.training.distributed import ProcessGrid
from metamixer.training.range_test import RANGES, STEPS, found, range_test
from metamixer.training.settings import TrainSettings
from metamixer.training.trainer import Trainer, TrainingError
from tests import processes, toys

RATES = tuple(float(rate) for rate in np.geomspace(1e-5, 10, STEPS))


def test_the_rate_is_half_of_that_with_the_lowest_running_mean():
    rng = np.random.default_rng(0)
    steps = np.arange(STEPS)
    losses = (
        2 - np.exp(-((steps - 60) ** 2) / 200) + (steps > 75) * (steps - 75) * 0.1 + 0.01 * rng.standard_normal(STEPS)
    )
    result = found(RATES, losses.tolist())
    means = []
    for step in steps:
        weights = 0.9 ** np.arange(step + 1)[::-1]
        means.append((weights * losses[: step + 1]).sum() / weights.sum())
    np.testing.assert_allclose(result.losses, means, rtol=1e-12)
    assert result.lr == pytest.approx(RATES[int(np.argmin(means))] / 2, rel=0.05)


def test_steps_that_failed_and_a_range_that_ended_early():
    losses = [2 - step / 50 for step in range(40)]
    early = found(RATES, losses)
    assert len(early.losses) == STEPS
    assert all(math.isnan(value) for value in early.losses[40:])
    assert early.lr == pytest.approx(RATES[39] / 2, rel=0.05)
    holes = [math.nan if step % 7 == 3 else 2 - step / 50 for step in range(40)]
    assert found(RATES, holes).lr == early.lr


@pytest.mark.parametrize("losses", [[], [math.nan] * STEPS, [1 + step for step in range(STEPS)], [2, 1, *[3] * 98]])
def test_no_rate_is_said_so(losses):
    with pytest.raises(TrainingError, match=r"optim\.lr=auto: the loss falls at no learning rate"):
        found(RATES, losses)


def ranged(batch=8, optim="sgd"):
    grid = ProcessGrid(TrainSettings(accelerator="cpu"))
    grid.launch()
    settings = TrainSettings(accelerator="cpu", epochs=3, patience=2, ema=0.9)
    return range_test(
        toys.cohort(), MetaMixer(strength="auto"), DML(), toys.loader(batch), settings, Optim(optim), grid=grid
    )


def test_the_same_parts_give_the_same_rate_in_all_processes(tmp_path):
    once, again = ranged(), ranged()
    assert once == again
    low, high = RANGES["sgd"]
    assert once.rates[0] == low
    assert once.rates[-1] == pytest.approx(high)
    assert low * 10 < once.lr < high
    assert min(filter(math.isfinite, once.losses)) < once.losses[0]
    first, second = processes.together(tmp_path, 2, ranged)
    assert first == second
    assert ranged(optim="adamw").rates[-1] == pytest.approx(1.0)


def test_rates_are_those_of_the_steps(monkeypatch):
    seen = []
    usual = Trainer._set_rate
    monkeypatch.setattr(Trainer, "_set_rate", lambda self, rate: seen.append(rate) or usual(self, rate))
    result = ranged(batch=16)  # two batches an epoch: 50 epochs
    np.testing.assert_allclose(seen[:STEPS], result.rates, rtol=1e-9)
    assert len(seen) == STEPS


def test_a_rate_that_is_to_be_found_is_no_number():
    with pytest.raises(ValueError, match="lr='auto' works in runs of recipes only"):
        Optim(lr="auto").rate(0.5)
    with pytest.raises(ValueError, match="lr='quick'"):
        Optim(lr="quick")
