import torch

from metamixer.core.plan import MixPlan
from metamixer.mixers import NoMix


def test_nothing_is_mixed_and_nothing_drawn():
    g = torch.Generator().manual_seed(0)
    before = g.get_state()
    assert NoMix()(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), generator=g, progress=0.5) == MixPlan()
    assert torch.equal(g.get_state(), before)
