from itertools import product

import numpy as np
import torch

from metamixer.core.seeding import derive, generator


def test_seeds_of_released_versions_stay():
    """A run that was written by an older version has to go on with the same draws."""
    assert derive(0, "order", 3) == 386106667988085106
    assert derive(7) == 6645920422606582411


def test_every_part_of_the_purpose_counts():
    seeds = [derive(seed, purpose, step) for seed, purpose, step in product(range(5), ("mix", "order"), range(50))]
    seeds += [derive(0, "mix"), derive(0, "mix1"), derive(0, "mix", "1"), derive(0, "m", "ix"), derive(0, "mix,", 1)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = torch.tensor(seeds)[:, None] >> torch.arange(63) & 1
    assert 0.3 < bits.double().mean(0).min() < bits.double().mean(0).max() < 0.7


def test_generators_start_from_the_derived_seed():
    first, again, other = generator(3, "mix", 5), generator(3, "mix", 5), generator(3, "mix", 6)
    assert first.initial_seed() == derive(3, "mix", 5)
    assert first.device.type == "cpu"
    draws = [torch.rand(4, generator=g).tolist() for g in (first, again, other)]
    assert draws[0] == draws[1] != draws[2]


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    torch.rand(4, generator=generator(0, "mix"))
    assert torch.equal(torch.get_rng_state(), before)


def test_numpys_integers_are_numbers():
    assert derive(0, "order", np.int64(3)) == derive(0, "order", 3)
