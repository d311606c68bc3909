"""A teacher's own normalisation and class order: hooks that no state dict holds and every copy keeps."""

import copy
import pickle

import pytest
import torch
from torch import nn

from metamixer import Cohort
from metamixer.cohort.teacher_view import has_view, reorder, rescale
from metamixer.core.plan import MixPlan
from metamixer.mixers import MetaMixer

OURS, OWN = ((0.4, 0.5), (0.2, 0.3)), ((0.1, 0.9), (0.6, 0.5))


class Sees(nn.Module):
    """Puts out the mean of each channel that it saw, and as a dict if asked."""

    def __init__(self, form="tensor"):
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        nn.init.eye_(self.inner[0].weight.view(2, 2))
        nn.init.zeros_(self.inner[0].bias)
        self.form = form

    def forward(self, images):
        found = self.inner(images)
        return {"logits": found} if self.form == "dict" else found


def planes(pair):
    return [torch.tensor(each, dtype=torch.float64).view(1, 2, 1, 1) for each in pair]


@pytest.mark.parametrize("form", ["tensor", "dict"])
def test_images_arrive_in_the_teachers_normalisation(form):
    teacher = Sees(form).double()
    before = set(teacher.state_dict())
    rescale(teacher, OURS, OWN)
    reorder(teacher, [1, 0])
    pixels = torch.rand(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(each).view(1, 2, 1, 1).double() for each in pair] for pair in (OURS, OWN)
    )
    wanted = ((pixels - own_mean) / own_std).mean((2, 3)).flip(1)
    torch.testing.assert_close(teacher((pixels - mean) / std), wanted, rtol=0, atol=1e-6)
    for other in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher))):
        torch.testing.assert_close(other((pixels - mean) / std), wanted, rtol=0, atol=1e-6)
    assert set(teacher.state_dict()) == before
    assert has_view(teacher)
    assert not has_view(Sees())


def test_a_cohort_mixes_what_the_teacher_sees_as_well():
    """Blends and boxes of normalised images are those of pixels, whatever the normalisation."""
    networks = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2)) for _ in range(2)]
    plain = copy.deepcopy(networks[1]).double()
    rescale(networks[1], OURS, OWN)
    cohort = Cohort(networks, stages=["1"], frozen=[1]).double()
    pixels = torch.rand(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(each).view(1, 2, 1, 1).double() for each in pair] for pair in (OURS, OWN)
    )
    labels = torch.arange(6) % 2
    plan: MixPlan = MetaMixer(local_probability=1.0, stages=(0,))(
        pixels, labels, companions=pixels.flip(0), generator=torch.Generator().manual_seed(1)
    )
    assert plan.operations
    found = cohort((pixels - mean) / std, _with_companions(plan, (pixels.flip(0) - mean) / std)).logits[1]
    mixed = _with_companions(plan, pixels.flip(0)).apply(pixels, 0)
    torch.testing.assert_close(found, plain((mixed - own_mean) / own_std), rtol=0, atol=1e-5)


def _with_companions(plan, companions):
    from dataclasses import replace

    return MixPlan(
        tuple(
            replace(each, source=companions) if getattr(each, "source", None) is not None else each
            for each in plan.operations
        )
    )
