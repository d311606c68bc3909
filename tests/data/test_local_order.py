"""The order of images in shards is random, complete and local."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from metamixer.data import CompanionTable
from metamixer.data.local_order import local_order, within_buffers


def draw(seed):
    return torch.Generator().manual_seed(seed)


@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    buffer=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_every_image_once_and_few_shards_in_a_buffer(counts, buffer, seed):
    shards = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = local_order(shards, buffer, draw(seed))
    assert sorted(order.tolist()) == list(range(len(shards)))
    ended = set()
    for part in torch.split(order, buffer):
        inside = set(shards[part].tolist())
        assert not inside & ended
        whole = {one for one in inside if int((shards[part] == one).sum()) == counts[one]}
        assert len(inside - whole) <= 2  # one began before, one ends later
        ended |= whole
    companions = CompanionTable(within_buffers(shards % 2, order, buffer))
    for part in torch.split(order, buffer):
        others = companions.draw(part, draw(seed))
        assert set(others.tolist()) <= set(part.tolist())
        assert torch.equal(others % 1, part % 1)
        assert torch.equal(shards[others] % 2, shards[part] % 2)
        for one, other in zip(part.tolist(), others.tolist(), strict=True):
            assert (one == other) == (int((shards[part] % 2 == shards[one] % 2).sum()) == 1)


def test_epochs_differ_in_shards_and_inside_of_buffers():
    shards = torch.arange(20).repeat_interleave(30)
    first, again, second = (local_order(shards, 60, draw(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert shards[first[:60]].unique().tolist() != shards[second[:60]].unique().tolist()
    assert first[:60].tolist() != sorted(first[:60].tolist())


def test_all_shards_and_places_are_as_likely():
    """The mean place of every image over many epochs is the middle, within five standard errors."""
    shards, epochs = torch.arange(6).repeat_interleave(4), 2000
    total = torch.zeros(24, dtype=torch.float64)
    for seed in range(epochs):
        total[local_order(shards, 8, draw(seed))] += torch.arange(24, dtype=torch.float64)
    spread = ((24**2 - 1) / 12) ** 0.5 / epochs**0.5
    assert ((total / epochs - 11.5).abs() < 5 * spread).all()
