import numpy as np
import pytest
import torch

from metamixer.mixers import ManifoldMixup

IMAGES, LABELS = torch.zeros(4, 3, 4, 4), torch.tensor([0, 1, 2, 0])


def full(**settings):
    return ManifoldMixup(**{"probability": 1.0, **settings})


def operations(mixer, n, progress=None):
    g = torch.Generator().manual_seed(0)
    plans = [mixer(IMAGES, LABELS, generator=g, progress=progress) for _ in range(n)]
    return [(plan, *plan.operations) for plan in plans]


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
def test_images_and_boundaries_before_the_last_stage_are_equally_likely(stages):
    drawn = [plan.at(stages).operations[0].stage for plan, _ in operations(full(), 2000)]
    counts = np.bincount(drawn, minlength=stages)
    assert len(counts) == stages  # never the end of the last stage
    assert ((counts - 2000 / stages) ** 2 / (2000 / stages)).sum() < 20.5  # chi-square, 5 degrees of freedom, 0.001


def test_given_stages_are_equally_likely():
    drawn = [operation.stage for _, operation in operations(full(stages=(1, 3, 4)), 2000)]
    counts = np.bincount(drawn)
    assert set(np.nonzero(counts)[0]) == {1, 3, 4}
    assert abs(counts[[1, 3, 4]] / 2000 - 1 / 3).max() < 0.04


@pytest.mark.parametrize("stages", [None, (0, 1, 2)])
def test_a_stage_for_each_peer(stages):
    drawn = []
    for plan, operation in operations(full(stage_draws=3, stages=stages), 2000):
        settled = [plan.at(3, peer).operations[0] for peer in range(3)]
        assert all(op.lam is operation.lam and op.partner is operation.partner for op in settled)
        drawn.append([op.stage for op in settled])
    drawn = np.array(drawn)
    for peer in range(3):
        assert abs(np.bincount(drawn[:, peer], minlength=3) / 2000 - 1 / 3).max() < 0.05
    for a, b in ((0, 1), (1, 2), (0, 2)):  # drawn independently: they agree in a third of the cases
        assert abs((drawn[:, a] == drawn[:, b]).mean() - 1 / 3) < 0.05


def test_one_stage_for_all_peers_by_default():
    for plan, _ in operations(full(), 50):
        assert len({plan.at(4, peer).operations[0].stage for peer in range(3)}) == 1


@pytest.mark.parametrize(("settings", "alpha"), [({}, ManifoldMixup().alpha), ({"alpha": 0.5}, 0.5)])
def test_shares(settings, alpha):
    lam = np.array([float(operation.lam) for _, operation in operations(full(**settings), 2000)])
    assert abs(lam.mean() - 0.5) < 0.03
    assert abs(lam.var() * 4 * (2 * alpha + 1) - 1) < 0.1


def test_a_share_for_each_sample():
    lam = torch.stack([operation.lam for _, operation in operations(full(lam="sample"), 1000)])
    assert lam.shape == (1000, 4)
    assert (torch.corrcoef(lam.T) - torch.eye(4)).abs().max() < 0.13  # 4 standard errors


def test_probability_and_window():
    def frequency(progress=None, **settings):
        return np.mean([len(drawn) - 1 for drawn in operations(full(**settings), 1000, progress)])

    assert abs(frequency(probability=0.7) - 0.7) < 0.06
    assert frequency(until=0.6, progress=0.6) == 0
    assert abs(frequency(ramp=1.0, progress=0.75) - 0.25) < 0.06


@pytest.mark.parametrize(
    "setting",
    [
        {"alpha": -1.0},
        {"alpha": 0.001},
        {"alpha": float("inf")},
        {"probability": -0.1},
        {"stages": ()},
        {"stages": (-1, 0)},
        {"stage_draws": 0},
        {"lam": "pixel"},
        {"until": -1.0},
        {"ramp": -0.1},
    ],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        ManifoldMixup(**setting)
