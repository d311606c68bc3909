import numpy as np
import pytest
import torch

from metamixer.core.plan import Blend
from metamixer.mixers import Mixup

IMAGES, LABELS = torch.zeros(6, 3, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])


def plans(mixer, n, images=IMAGES, labels=LABELS, **options):
    g = torch.Generator().manual_seed(0)
    return [mixer(images, labels, generator=g, **options) for _ in range(n)]


@pytest.mark.parametrize("alpha", [0.4, 1.0, 4.0])
def test_shares_and_partners(alpha):
    operations = [plan.operations[0] for plan in plans(Mixup(alpha=alpha, probability=1.0), 2000)]
    assert {(type(op), op.stage, op.lam.shape, op.lam.dtype) for op in operations} == {(Blend, 0, (), torch.float32)}
    lam = np.array([float(op.lam) for op in operations])
    assert abs(lam.mean() - 0.5) < 0.03
    assert abs(lam.var() * 4 * (2 * alpha + 1) - 1) < 0.1
    partners = np.array([op.partner.tolist() for op in operations])
    assert (np.sort(partners, 1) == np.arange(6)).all()
    for sample in range(6):  # any other, itself included
        assert abs(np.bincount(partners[:, sample], minlength=6) / 2000 - 1 / 6).max() < 0.03


def test_a_share_for_each_sample():
    (operation,) = Mixup(lam="sample", probability=1.0)(IMAGES, LABELS).operations
    assert operation.lam.shape == (6,)
    assert len(set(operation.lam.tolist())) == 6


def test_images_and_labels_by_hand():
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64)
    plan = Mixup(probability=1.0)(x, LABELS, generator=torch.Generator().manual_seed(1))
    lam, partner = float(plan.operations[0].lam), plan.operations[0].partner
    torch.testing.assert_close(plan.apply(x, 0), lam * x + (1 - lam) * x[partner])
    one_hot = torch.eye(3)[LABELS]
    torch.testing.assert_close(plan.targets(LABELS, 3), lam * one_hot + (1 - lam) * one_hot[partner])


def test_probability_and_window():
    def frequency(progress=None, **settings):
        return np.mean(
            [len(plan.operations) for plan in plans(Mixup(**{"probability": 1.0, **settings}), 1000, progress=progress)]
        )

    assert abs(frequency(probability=0.3) - 0.3) < 0.06
    assert frequency(until=0.5, progress=0.5) == 0
    assert frequency(until=0.5, progress=0.49) == 1
    assert abs(frequency(until=0.8, ramp=0.4, progress=0.6) - 0.5) < 0.06


@pytest.mark.parametrize(
    "setting",
    [
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"probability": 1.5},
        {"lam": "image"},
        {"until": 2.0},
        {"until": 0.5, "ramp": 0.6},
    ],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{list(setting)[-1]}="):
        Mixup(**setting)


def test_a_batch_of_one_stays():
    x = torch.randn(1, 1, 3, 3)
    plan = Mixup(probability=1.0)(x, torch.tensor([2]))
    assert torch.equal(plan.apply(x, 0), x)
    assert plan.targets(torch.tensor([2]), 3).tolist() == [[0, 0, 1]]
