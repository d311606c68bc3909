"""Labels of every kind, against loops over single numbers."""

import pytest
import torch

from metamixer.core.labels import class_indices, soft_targets
from metamixer.mixers import MIXERS, MetaMixer, SameClassCutMix

CLASSES = 4
LABELS = torch.tensor([2, 0, 2, 3, 1, 0])


def soft(seed=0):
    drawn = torch.rand(len(LABELS), CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn / drawn.sum(-1, keepdim=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_class_indices_of_any_integer_type(dtype):
    wanted = torch.zeros(len(LABELS), CLASSES)
    for row, label in enumerate(LABELS.tolist()):
        wanted[row, label] = 1
    assert torch.equal(soft_targets(LABELS.to(dtype), CLASSES), wanted)
    assert torch.equal(class_indices(LABELS.to(dtype)), LABELS)
    assert torch.equal(soft_targets(wanted.to(dtype), CLASSES), wanted)  # one-hot
    assert torch.equal(soft_targets(wanted.bool(), CLASSES), wanted)
    assert torch.equal(class_indices(wanted.to(dtype)), LABELS)


def test_soft_labels_stay_as_they_are():
    for dtype in (torch.float64, torch.float32, torch.float16):
        assert torch.equal(soft_targets(soft().to(dtype), CLASSES), soft().to(dtype).float())


@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer_folds_soft_labels(name):
    """Each operation moves a share of the labels, as a loop over the rows does."""
    images = torch.rand(len(LABELS), 3, 8, 8, dtype=torch.float64)
    mixer = MIXERS[name]()
    for seed in range(8):
        plan = mixer(images, soft(), generator=torch.Generator().manual_seed(seed))
        wanted = soft()
        for operation in plan.operations:
            mixed = wanted.clone()
            for row in range(len(LABELS)):
                paste = getattr(operation, "pastes", (operation,))[0]
                if paste.partner is None:
                    continue
                if hasattr(paste, "lam"):
                    share = 1 - float(paste.lam if paste.lam.ndim == 0 else paste.lam[row])
                else:
                    low, high = (bound if bound.ndim == 1 else bound[row] for bound in (paste.low, paste.high))
                    share = float((high - low).prod()) / 64
                mixed[row] = (1 - share) * wanted[row] + share * wanted[int(paste.partner[row])]
            wanted = mixed
        torch.testing.assert_close(plan.targets(soft(), CLASSES).double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mixer", [SameClassCutMix(probability=1.0), MetaMixer(local_probability=1.0)])
def test_partners_of_one_class_are_those_of_the_largest_share(mixer):
    images, labels = torch.rand(len(LABELS), 3, 8, 8), soft()
    draws = [mixer(images, each, generator=torch.Generator().manual_seed(1)) for each in (labels, labels.argmax(-1))]
    assert torch.equal(draws[0].operations[0].partner, draws[1].operations[0].partner)
    chosen = labels.argmax(-1)
    assert torch.equal(chosen[draws[0].operations[0].partner], chosen)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"labels are \(2,\) float32; accepted: class indices \(B,\) of an integer type, or"),
        (torch.zeros(2, 8, 8, dtype=torch.long), r"labels are \(2, 8, 8\) int64"),
        (torch.zeros(2, 1, dtype=torch.long), r"labels are \(2, 1\) int64.*or soft labels \(B, 4\)"),
        (torch.tensor([True, False]), r"labels are \(2,\) bool"),
        (torch.tensor([0, 4]), "there is a label 4; accepted: 0 to 3, for 4 classes"),
        (torch.tensor([-100, 1]), "there is a label -100; accepted: 0 to 3"),
        (torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]), "row 0 of the targets sums to 2"),
        (torch.tensor([[1.0, 0, 0, 0], [2.0, -1.0, 0, 0]]), "row 1 of the targets sums to 1, its least is -1"),
    ],
)
def test_what_is_no_label(labels, message):
    with pytest.raises(ValueError, match=message):
        soft_targets(labels, CLASSES)


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_refuses_an_empty_batch(name):
    with pytest.raises(ValueError, match="there are 0 images and 0 labels; accepted: equal numbers, at least one"):
        MIXERS[name]()(torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="there are 3 images and 2 labels"):
        MIXERS[name]()(torch.zeros(3, 3, 8, 8), torch.zeros(2, dtype=torch.long))
