"""What mixers draw, against independent samplers and textbook moments. All seeds are fixed: nothing here is flaky."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metamixer.mixers.sampling import beta, boxes, happens, permutation, same_class_partners, strength
from tests.oracle import seeded

# The 0.999 quantiles of chi-square by degrees of freedom.
CHI2 = {2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 7: 24.32, 9: 27.88, 23: 49.73}


def chi2(counts):
    counts = np.asarray(counts, dtype=float)
    expected = counts.sum() / len(counts)
    return ((counts - expected) ** 2 / expected).sum()


def ks(a, b):
    """The largest distance of two empirical distribution functions."""
    a, b = np.sort(np.asarray(a, dtype=float)), np.sort(np.asarray(b, dtype=float))
    grid = np.concatenate([a, b])
    return np.abs(np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)).max()


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 2.0, 8.0])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_beta_moments(alpha, one_by_one):
    """Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1)), fourth central moment 3 / (16 (2a + 1) (2a + 3))."""
    g = seeded(1)
    n = 4000 if one_by_one else 40_000
    share = torch.stack([beta(alpha, None, g) for _ in range(n)]) if one_by_one else beta(alpha, n, g)
    assert share.shape == (n,)
    assert share.dtype == torch.float64
    assert 0 <= share.min() <= share.max() <= 1
    variance, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    sd_of_variance = ((fourth - variance**2) / n) ** 0.5
    assert abs(float(share.mean()) - 0.5) < 4 * (variance / n) ** 0.5
    assert abs(float((share - 0.5).square().mean()) - variance) < 4 * sd_of_variance
    theirs = np.random.default_rng(0).beta(alpha, alpha, n)
    rounded = [np.clip(drawn, 1e-12, 1 - 1e-12) for drawn in (share.numpy(), theirs)]
    assert ks(*rounded) < 1.95 * (2 / n) ** 0.5  # Kolmogorov and Smirnov's at 0.001


@pytest.mark.parametrize("alpha", [0.01, 1e6])
def test_beta_of_extreme_alphas(alpha):
    """Below 0.01, which the mixers refuse, both gamma variates underflow and the share is a half."""
    share = beta(alpha, 4000, seeded())
    assert share.isfinite().all()
    assert 0.45 < share.mean() < 0.55
    middle = ((share > 0.1) & (share < 0.9)).double().mean()
    expected = alpha * np.log(9) if alpha < 1 else 1.0  # the density is alpha / 2 / (x (1 - x)) for small alpha
    assert abs(middle - expected) < 0.01


def test_happens():
    g = seeded()
    assert abs(np.mean([happens(0.3, g) for _ in range(4000)]) - 0.3) < 4 * (0.21 / 4000) ** 0.5
    assert not any(happens(0.0, g) for _ in range(200))
    assert all(happens(1.0, g) for _ in range(200))


def test_happens_draws_even_where_the_answer_is_sure():
    after = []
    for probability in (0.0, 0.5, 1.0):
        g = seeded()
        happens(probability, g)
        after.append(g.get_state())
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[1], after[2])


@pytest.mark.parametrize(
    ("until", "ramp", "expected"),
    [  # at progress 0, 0.25, 0.5, 0.75, 1 and None
        (1.0, 0.0, [0.8, 0.8, 0.8, 0.8, 0.8, 0.8]),
        (0.5, 0.0, [0.8, 0.8, 0.0, 0.0, 0.0, 0.8]),
        (0.5, 0.5, [0.8, 0.4, 0.0, 0.0, 0.0, 0.8]),
        (1.0, 0.5, [0.8, 0.8, 0.8, 0.4, 0.0, 0.8]),
        (1.0, 1.0, [0.8, 0.6, 0.4, 0.2, 0.0, 0.8]),
        (0.0, 0.0, [0.0, 0.0, 0.0, 0.0, 0.0, 0.8]),
    ],
)
def test_strength(until, ramp, expected):
    progress = [0.0, 0.25, 0.5, 0.75, 1.0, None]
    assert [strength(0.8, until, ramp, at) for at in progress] == pytest.approx(expected)


def test_permutations_are_uniform():
    g = seeded()
    counts = {}
    for _ in range(4800):
        drawn = tuple(permutation(4, g).tolist())
        counts[drawn] = counts.get(drawn, 0) + 1
    assert len(counts) == 24
    assert chi2(list(counts.values())) < CHI2[23]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=24), st.integers(0, 2**31))
def test_partners_are_others_of_the_class(labels, seed):
    partner = same_class_partners(torch.tensor(labels), seeded(seed)).tolist()
    assert sorted(partner) == list(range(len(labels)))
    for own, other in enumerate(partner):
        assert labels[own] == labels[other]
        assert (own == other) == (labels.count(labels[own]) == 1)


def test_partners_do_not_depend_on_the_names_of_the_classes():
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2])
    renamed = torch.tensor([500, 10**12, -3])[labels]
    first = [same_class_partners(labels, seeded(s)).tolist() for s in range(200)]
    second = [same_class_partners(renamed, seeded(s)).tolist() for s in range(200)]
    for a, b in zip(first, second, strict=True):
        assert [labels[i] for i in a] == [labels[i] for i in b] == labels.tolist()


@pytest.mark.parametrize("sample", [0, 3, 9])
def test_each_other_sample_of_the_class_is_equally_likely(sample):
    labels = torch.tensor([0, 1, 1, 0, 0, 2, 0, 1, 0, 0])  # class 0: samples 0, 3, 4, 6, 8, 9
    g = seeded(7)
    drawn = [int(same_class_partners(labels, g)[sample]) for _ in range(3000)]
    others = [i for i in (0, 3, 4, 6, 8, 9) if i != sample]
    assert set(drawn) == set(others)
    assert chi2([drawn.count(i) for i in others]) < CHI2[4]


def rand_bbox(rng, alpha, width, height):
    """As in the authors' code (clovaai/CutMix-PyTorch, ``train.py``), but for the generator."""
    lam = rng.beta(alpha, alpha)
    cut_rat = np.sqrt(1.0 - lam)
    cut_w, cut_h = int(width * cut_rat), int(height * cut_rat)
    cx, cy = rng.integers(width), rng.integers(height)
    x1, y1 = np.clip(cx - cut_w // 2, 0, width), np.clip(cy - cut_h // 2, 0, height)
    x2, y2 = np.clip(cx + cut_w // 2, 0, width), np.clip(cy + cut_h // 2, 0, height)
    return x1, y1, x2, y2


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize(("alpha", "size"), [(1.0, (32, 32)), (0.3, (16, 40)), (3.0, (9, 5))], ids=str)
def test_boxes_are_those_of_the_authors_code(alpha, size, per):
    g, rng = seeded(3), np.random.default_rng(4)
    n = 3000 if per == "batch" else 10_000
    if per == "batch":
        low, high = (torch.stack(bound) for bound in zip(*(boxes(alpha, size, None, g) for _ in range(n)), strict=True))
    else:
        low, high = boxes(alpha, size, n, g)
    assert low.shape == high.shape == (n, 2)
    assert low.dtype == high.dtype == torch.int64
    theirs = np.array([rand_bbox(rng, alpha, *size) for _ in range(n)])
    ours = torch.cat([low, high], 1).numpy()
    limit = 1.95 * (2 / n) ** 0.5  # Kolmogorov and Smirnov's at 0.001
    for column in range(4):
        assert ks(ours[:, column], theirs[:, column]) < limit
    sides = [box[:, 2:] - box[:, :2] for box in (ours, theirs)]
    assert ks(*(side.prod(1) for side in sides)) < limit
    assert ks(*(side[:, 0] / size[0] - side[:, 1] / size[1] for side in sides)) < limit  # sides go together


@pytest.mark.parametrize("size", [(50,), (20, 30), (12, 10, 14)], ids=str)
def test_a_box_covers_its_share_in_any_dimension(size):
    """With alpha this large lambda is 1/2; where nothing is cut off the volume is half as well, whatever S."""
    low, high = boxes(1e6, size, 400, seeded())
    sides = (high - low).double() / torch.tensor(size)
    whole = ((low > 0) & (high < torch.tensor(size))).all(1)
    assert whole.sum() > 2
    one_pixel = 2 / min(size)
    assert torch.all((sides[whole] - 0.5 ** (1 / len(size))).abs() <= one_pixel)


@pytest.mark.parametrize("size", [(7,), (6, 9)], ids=str)
def test_centres_are_uniform(size):
    """A box of tiny alpha is nothing or everything; of nothing both bounds are the centre."""
    low, high = boxes(1e-3, size, 6000, seeded(5))
    empty = (low == high).all(1)
    for axis, length in enumerate(size):
        counts = torch.bincount(low[empty, axis], minlength=length)
        assert len(counts) == length
        assert chi2(counts.tolist()) < 32  # 8 degrees of freedom at most


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.floats(0.05, 20),
    st.none() | st.integers(1, 5),
    st.integers(0, 2**31),
)
def test_boxes_lie_in_the_image(size, alpha, count, seed):
    low, high = boxes(alpha, tuple(size), count, seeded(seed))
    assert low.shape == high.shape == ((len(size),) if count is None else (count, len(size)))
    assert torch.all(low >= 0)
    assert torch.all(low <= high)
    assert torch.all(high <= torch.tensor(size))
