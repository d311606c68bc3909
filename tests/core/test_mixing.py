"""Blending and pasting against loops over single numbers, in float64."""

from fractions import Fraction
from itertools import product

import pytest
import torch

from metamixer.core.mixing import blend, box_mask, box_share, paste

SHAPES = [(5, 6), (5, 3, 4), (5, 3, 4, 2), (5, 2, 3, 2, 4)]
PARTNER = torch.tensor([3, 0, 2, 4, 1])  # a fixed point, and no involution: the inverse is another permutation


def slow_blend(x, lam, partner):
    """lam x_b + (1 - lam) x_partner(b), one number after the other."""
    mixed = torch.empty(x.shape, dtype=torch.float64)
    for b in range(len(x)):
        share = float(lam if lam.ndim == 0 else lam[b])
        for place in product(*map(range, x.shape[1:])):
            own, other = float(x[(b, *place)]), float(x[(int(partner[b]), *place)])
            mixed[(b, *place)] = share * own + (1 - share) * other
    return mixed


def slow_paste(x, other, low, high):
    """Pixel by pixel: other[b] inside the box of sample b, x[b] outside."""
    mixed = x.clone(memory_format=torch.contiguous_format)
    for b in range(len(x)):
        first, last = (low, high) if low.ndim == 1 else (low[b], high[b])
        for place in product(*map(range, x.shape[2:])):
            if all(int(first[axis]) <= i < int(last[axis]) for axis, i in enumerate(place)):
                for c in range(x.shape[1]):
                    mixed[(b, c, *place)] = other[(b, c, *place)]
    return mixed


def draw(shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def layouts(x):
    """The same numbers in every memory layout that a network can produce."""
    yield "contiguous", x.contiguous()
    yield "transposed", x.transpose(0, -1).contiguous().transpose(0, -1)
    wide = torch.stack([x, x + 1], -1)
    yield "slice", wide[..., 0]
    if x.ndim == 4:
        yield "channels last", x.contiguous(memory_format=torch.channels_last)
        yield (
            "slice of channels last",
            torch.cat([x, x], 3).contiguous(memory_format=torch.channels_last)[..., : x.shape[3]],
        )
    if x.ndim == 5:
        yield "channels last", x.contiguous(memory_format=torch.channels_last_3d)


def shares(kind, dtype=torch.float64):
    return torch.tensor(0.3, dtype=dtype) if kind == "batch" else torch.tensor([0.1, 0.9, 0.25, 0.6, 0.0], dtype=dtype)


@pytest.mark.parametrize("kind", ["batch", "sample"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blend_is_the_slow_loop(shape, kind):
    x, lam = draw(shape), shares(kind)
    for name, laid_out in layouts(x):
        before = laid_out.clone()
        mixed = blend(laid_out, lam, PARTNER)
        torch.testing.assert_close(mixed, slow_blend(x, lam, PARTNER), msg=name)
        assert torch.equal(laid_out, before), name


@pytest.mark.parametrize("kind", ["batch", "sample"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blend_gradient(shape, kind):
    lam = shares(kind)
    for _, x in layouts(draw(shape)):
        x = x.detach().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: blend(x, lam, PARTNER), x)


@pytest.mark.parametrize("kind", ["batch", "sample"])
def test_blend_gradient_is_the_transposed_loop(kind):
    """What sample b receives it owes: lam_b g_b, and 1 - lam of everyone who took from it."""
    x, lam, grad = draw((5, 3, 4, 2)).requires_grad_(), shares(kind), draw((5, 3, 4, 2), seed=1)
    wanted = torch.zeros_like(x)
    for b in range(5):
        share = lam if lam.ndim == 0 else lam[b]
        wanted[b] += share * grad[b]
        wanted[PARTNER[b]] += (1 - share) * grad[b]
    for _, laid_out in layouts(grad):
        (found,) = torch.autograd.grad(blend(x, lam, PARTNER), x, laid_out)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["batch", "sample"])
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((5, 3, 4, 2), torch.channels_last),
        ((5, 3, 4, 2), torch.contiguous_format),
        ((5, 2, 3, 2, 4), torch.channels_last_3d),
        ((5, 2, 3, 2, 4), torch.contiguous_format),
    ],
)
def test_blend_keeps_the_memory_format_forward_and_backward(shape, memory_format, kind):
    x = draw(shape).contiguous(memory_format=memory_format).requires_grad_()
    mixed = blend(x, shares(kind), PARTNER)
    assert mixed.is_contiguous(memory_format=memory_format)
    (grad,) = torch.autograd.grad(mixed, x, draw(shape).contiguous(memory_format=memory_format))
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("kind", ["batch", "sample"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blend_in_lower_precision(shape, dtype, kind):
    x, lam = draw(shape, dtype=dtype), shares(kind, torch.float32)
    for _, laid_out in layouts(x):
        laid_out = laid_out.detach().requires_grad_()
        mixed = blend(laid_out, lam, PARTNER)
        assert mixed.dtype == dtype
        size = torch.finfo(dtype).eps * float(x.abs().max()) * 2
        torch.testing.assert_close(mixed.double(), slow_blend(x, lam.to(dtype), PARTNER), rtol=0, atol=size)
        mixed.sum().backward()
        assert laid_out.grad.dtype == dtype


def test_blend_at_the_ends_is_exact():
    x = draw((5, 3, 4, 2), dtype=torch.float32)
    assert torch.equal(blend(x, torch.tensor(1.0), PARTNER), x)
    assert torch.equal(blend(x, torch.tensor(0.0), PARTNER), x[PARTNER])
    assert torch.equal(blend(x, torch.rand(5), torch.arange(5)), x)  # everyone with itself


@pytest.mark.parametrize("kind", ["batch", "sample"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_in_place_activation_may_follow_a_blend(shape, kind):
    """``nn.ReLU(inplace=True)`` after a stage's end is common, and autograd refuses it on views."""
    for _, x in layouts(draw(shape)):
        lam = shares(kind)
        plain, in_place = (x.clone().requires_grad_() for _ in range(2))
        torch.relu(blend(plain, lam, PARTNER)).square().sum().backward()
        torch.relu_(blend(in_place, lam, PARTNER)).square().sum().backward()
        assert torch.equal(plain.grad, in_place.grad)
        assert plain.grad.abs().sum() > 0


ANY_PARTNERS = {  # the second half has no inverse: some rows are nobody's partner, others several times
    "permutation": PARTNER,
    "one for all": torch.tensor([2, 2, 2, 2, 2]),
    "repeated": torch.tensor([3, 0, 3, 4, 0]),
}
any_partners = pytest.mark.parametrize("partner", ANY_PARTNERS.values(), ids=ANY_PARTNERS)


@any_partners
@pytest.mark.parametrize("kind", ["batch", "sample"])
def test_blend_gradient_with_any_partners_is_the_loop(kind, partner):
    x, lam, grad = draw((5, 3, 4, 2)).requires_grad_(), shares(kind), draw((5, 3, 4, 2), seed=1)
    wanted = torch.zeros_like(x)
    for b in range(5):
        share = lam if lam.ndim == 0 else lam[b]
        wanted[b] += share * grad[b]
        wanted[partner[b]] += (1 - share) * grad[b]
    for name, laid_out in layouts(x.detach()):
        laid_out.requires_grad_()
        torch.testing.assert_close(blend(laid_out, lam, partner), slow_blend(x.detach(), lam, partner))
        (found,) = torch.autograd.grad(blend(laid_out, lam, partner), laid_out, grad)
        torch.testing.assert_close(found, wanted, msg=name)


@any_partners
@pytest.mark.parametrize("kind", ["batch", "sample"])
def test_blend_has_derivatives_of_every_order(kind, partner):
    lam = shares(kind)
    for _, x in layouts(draw((5, 3, 4, 2))):
        x = x.detach().requires_grad_()
        assert torch.autograd.gradgradcheck(lambda x: blend(x, lam, partner).sin(), x)
        assert torch.autograd.gradgradcheck(lambda x: blend(blend(x, lam, partner).sin(), lam, PARTNER).exp(), x)


@any_partners
@pytest.mark.parametrize("kind", ["batch", "sample"])
def test_blend_has_derivatives_by_lam(kind, partner):
    x, lam = draw((5, 3, 4, 2)).requires_grad_(), shares(kind).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, lam: blend(x, lam, partner), (x, lam))
    assert torch.autograd.gradgradcheck(lambda x, lam: blend(x, lam, partner).sin(), (x, lam))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, for forward mode
@any_partners
@pytest.mark.parametrize("kind", ["batch", "sample"])
def test_function_transforms_of_blend(kind, partner):
    """``torch.func``: gradient, Hessian, and a batch of batches, of lambdas and of partners."""
    x, lam = draw((5, 3)), shares(kind)

    def energy(x):
        return blend(x, lam, partner).sin().square().sum()

    def plain(x):
        weight = lam if lam.ndim == 0 else lam[:, None]
        return (weight * x + (1 - weight) * x[partner]).sin().square().sum()

    torch.testing.assert_close(torch.func.grad(energy)(x), torch.func.grad(plain)(x))
    torch.testing.assert_close(torch.func.hessian(energy)(x), torch.func.hessian(plain)(x))
    many = draw((4, 5, 3), seed=1)
    for function in (energy, torch.func.grad(energy)):
        torch.testing.assert_close(torch.vmap(function)(many), torch.stack([function(each) for each in many]))
    every_lam, every_partner = torch.stack([lam, 1 - lam]), torch.stack([partner, PARTNER])
    torch.testing.assert_close(
        torch.vmap(blend, in_dims=(None, 0, 0))(x, every_lam, every_partner),
        torch.stack([blend(x, *pair) for pair in zip(every_lam, every_partner, strict=True)]),
    )


@pytest.mark.parametrize(
    ("lam", "partner"),
    [(torch.tensor(0.5), torch.arange(4)), (torch.rand(4), PARTNER), (torch.rand(5, 1), PARTNER)],
    ids=["partners", "shares", "a column of shares"],
)
def test_rows_without_partner_or_share_are_refused(lam, partner):
    with pytest.raises(ValueError, match=r"for a tensor of shape \(5, 6\); accepted: one for each of its rows"):
        blend(draw((5, 6)), lam, partner)


def test_a_paste_with_too_few_partners_is_refused():
    x = draw((5, 2, 4, 4))
    with pytest.raises(ValueError, match=r"partner of shape \(1,\) for a tensor of shape \(5, 2, 4, 4\)"):
        paste(x, x, torch.tensor([2]), torch.tensor([0, 0]), torch.tensor([2, 2]))


BOXES = {  # for sizes (5), (5, 4), (5, 4, 3): low, high
    "inside": ([1, 1, 1], [4, 3, 2]),
    "at the lower edge": ([0, 0, 0], [2, 1, 1]),
    "at the upper edge": ([3, 2, 2], [5, 4, 3]),
    "empty": ([2, 2, 1], [2, 2, 1]),
    "empty on one axis": ([1, 1, 1], [1, 4, 3]),
    "full": ([0, 0, 0], [5, 4, 3]),
}


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("companions", [False, True], ids=["partner", "companions"])
def test_slices_masks_and_the_pixel_loop_agree(axes, box, companions):
    size = (5, 4, 3)[:axes]
    low, high = (torch.tensor(bound[:axes]) for bound in BOXES[box])
    x = draw((5, 2, *size))
    source, partner = (draw(x.shape, seed=1), None) if companions else (x, PARTNER)
    wanted = slow_paste(x, source if companions else x[PARTNER], low, high)
    assert torch.equal(wanted, x) == box.startswith("empty")
    for name, laid_out in layouts(x):
        before = laid_out.clone()
        donor = source if companions else laid_out
        assert torch.equal(paste(laid_out, donor, partner, low, high), wanted), name
        assert torch.equal(paste(laid_out, donor, partner, low.expand(5, -1), high.expand(5, -1)), wanted), name
        assert torch.equal(laid_out, before), name  # an image of the batch is donor and receiver at once


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("companions", [False, True], ids=["partner", "companions"])
def test_a_box_for_each_sample(axes, companions):
    size = (5, 4, 3)[:axes]
    low, high = (torch.tensor([box[side][:axes] for box in list(BOXES.values())[:5]]) for side in (0, 1))
    x = draw((5, 2, *size))
    source, partner = (draw(x.shape, seed=1), None) if companions else (x, PARTNER)
    wanted = slow_paste(x, source if companions else x[PARTNER], low, high)
    for _, laid_out in layouts(x):
        assert torch.equal(paste(laid_out, source if companions else laid_out, partner, low, high), wanted)


@pytest.mark.parametrize("each", [False, True], ids=["batch", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axes", [2, 3])
def test_paste_keeps_memory_format_and_dtype(axes, dtype, each):
    size, last = ((5, 4), torch.channels_last) if axes == 2 else ((5, 4, 3), torch.channels_last_3d)
    low, high = torch.tensor([1, 1, 0][:axes]), torch.tensor([3, 4, 2][:axes])
    if each:
        low, high = low.expand(5, -1), high.expand(5, -1)
    for memory_format in (last, torch.contiguous_format):
        x = draw((5, 2, *size), dtype=dtype).contiguous(memory_format=memory_format)
        for mixed in (paste(x, x, PARTNER, low, high), paste(x, draw(x.shape, dtype=dtype), None, low, high)):
            assert mixed.is_contiguous(memory_format=memory_format)
            assert mixed.dtype == dtype


@pytest.mark.parametrize("each", [False, True], ids=["batch", "sample"])
def test_paste_gradient(each):
    """Adversarial training asks for the images' gradient."""
    low, high = torch.tensor([1, 0]), torch.tensor([3, 2])
    if each:
        low, high = low.expand(5, -1), high.expand(5, -1)
    x, companions = draw((5, 2, 4, 3)).requires_grad_(), draw((5, 2, 4, 3), seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: paste(x, x, PARTNER, low, high), x)
    assert torch.autograd.gradcheck(lambda x, y: paste(x, y, None, low, high), (x, companions))


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_box_share_counts_pixels(axes):
    size = (5, 4, 3)[:axes]
    lows, highs = ([box[side][:axes] for box in BOXES.values()] for side in (0, 1))
    every = [list(product(*map(range, size)))] * len(lows)
    counted = [
        Fraction(sum(all(a <= i < b for a, i, b in zip(low, p, high, strict=True)) for p in places), len(places))
        for low, high, places in zip(lows, highs, every, strict=True)
    ]
    found = box_share(torch.tensor(lows), torch.tensor(highs), size)
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, torch.tensor([float(c) for c in counted], dtype=torch.float64), rtol=1e-15, atol=0
    )
    assert float(found[list(BOXES).index("full")]) == 1
    assert float(found[list(BOXES).index("empty")]) == 0
    for low, high, share in zip(lows, highs, found, strict=True):
        assert torch.equal(box_share(torch.tensor(low), torch.tensor(high), size), share)


def test_box_mask_is_the_box():
    low, high = torch.tensor([[0, 1, 2], [1, 1, 0]]), torch.tensor([[2, 3, 3], [5, 1, 3]])
    mask = box_mask(low, high, (5, 4, 3), torch.device("cpu"))
    assert mask.shape == (2, 1, 5, 4, 3)
    for b, *place in product(range(2), range(5), range(4), range(3)):
        assert bool(mask[(b, 0, *place)]) == all(low[b, axis] <= i < high[b, axis] for axis, i in enumerate(place))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("partner", [None, torch.tensor([1, 2, 0])])
def test_a_mask_for_one_box_pastes_what_slices_paste(memory_format, partner):
    draw = torch.Generator().manual_seed(0)
    x, source = (torch.randn(3, 4, 6, 5, generator=draw).contiguous(memory_format=memory_format) for _ in range(2))
    for low, high in [((0, 0), (6, 5)), ((1, 2), (4, 3)), ((2, 2), (2, 5))]:
        low, high = torch.tensor(low), torch.tensor(high)
        sliced = paste(x, source, partner, low, high)
        masked = paste(x, source, partner, low[None], high[None])
        assert torch.equal(sliced, masked)
        assert sliced.is_contiguous(memory_format=memory_format)
        assert masked.is_contiguous(memory_format=memory_format)
        assert box_share(low[None], high[None], (6, 5)).item() == box_share(low, high, (6, 5)).item()
