"""Any batch, any settings, any logits: what plans, losses and rates promise, held against slow loops.

The examples are the same in every run; ``HYPOTHESIS_PROFILE=search`` looks for others (see ``tests/conftest.py``).
"""

import contextlib
import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metamixer.config.registry import LOSSES, MIXERS
from metamixer.core.plan import Blend, MixPlan, Paste, PerPeer
from metamixer.core.types import Outputs, total
from metamixer.training.optimizer import Optim
from tests.losses import test_contract as contract
from tests.losses.traits import trait

PEERS = 3
DEPTH = 3  # stages of the networks
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

every_mixer = pytest.mark.parametrize("name", MIXERS)
every_loss = pytest.mark.parametrize("name", LOSSES)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def few(count, **others):
    """So many examples, or twenty times as many where new ones are looked for."""
    return settings(max_examples=count if settings().derandomize else 20 * count, **others)


# Plans


@st.composite
def settings_of(draw, cls, fixed):
    """Settings of a mixer, of all kinds that it has."""
    found = {}
    for field in dataclasses.fields(cls):
        if field.name.endswith("alpha"):
            found[field.name] = draw(st.floats(0.01, 50))
        elif field.name.endswith("probability"):
            found[field.name] = draw(st.sampled_from([0.0, 0.5, 1.0, 1.0]))
        elif field.name in ("box", "lam"):
            found[field.name] = draw(st.sampled_from(["batch", "sample"]))
        elif field.name == "partners":
            found[field.name] = draw(st.sampled_from(["same_class", "any"]))
        elif field.name == "stages":
            found[field.name] = draw(st.none() | st.lists(st.integers(0, DEPTH), min_size=1, max_size=3).map(tuple))
        elif field.name == "stage_draws":
            found[field.name] = draw(st.sampled_from([1, PEERS]))
        elif field.name == "peers":
            found[field.name] = PEERS
    if "until" in cls.__dataclass_fields__:
        found["until"] = draw(st.sampled_from([0.25, 0.5, 1.0]))
        found["ramp"] = draw(st.floats(0, found["until"]))
    return found | fixed


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A plan with all that it was drawn from."""

    plan: MixPlan
    images: torch.Tensor
    labels: torch.Tensor
    classes: int
    companions: torch.Tensor | None


@st.composite
def drawn_by(draw, cls, **fixed):
    batch, classes = draw(st.integers(1, 40)), draw(st.integers(1, 12))
    kind, source = draw(st.sampled_from(["any", "singletons", "one class"])), seeded(draw(st.integers(0, 2**31)))
    if kind == "singletons":
        classes = max(classes, batch)
        labels = torch.randperm(classes, generator=source)[:batch]
    else:
        labels = torch.randint(0, classes if kind == "any" else 1, (batch,), generator=source)
    size = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    channels = draw(st.integers(1, 3))
    images = torch.randn((2, batch, channels, *size), generator=source, dtype=dtype).unbind()
    if len(size) > 1 and draw(st.booleans()):
        images = [each.contiguous(memory_format=CHANNELS_LAST[each.ndim]) for each in images]
    companions = images[1] if draw(st.booleans()) else None
    mixer = cls(**draw(settings_of(cls, fixed)))
    progress, seed = draw(st.none() | st.floats(0, 1)), draw(st.integers(0, 2**31))
    before = images[0].clone(), labels.clone(), images[1].clone()
    plan = mixer(images[0], labels, companions=companions, generator=seeded(seed), progress=progress)
    again = mixer(images[0], labels, companions=companions, generator=seeded(seed), progress=progress)
    assert pickle.dumps(contract.plain(plan)) == pickle.dumps(contract.plain(again))
    for now, then in zip((images[0], labels, images[1]), before, strict=True):
        assert torch.equal(now, then)
    return Drawn(plan, images[0], labels, classes, companions)


def examples(strategy_of, count):
    """Runs a test of one parameter, ``name``, on ``count`` examples of ``strategy_of(name)``."""

    def decorate(check):
        @few(count)
        @given(data=st.data())
        def test(name, data):
            check(data.draw(strategy_of(name)))

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return every_mixer(test)

    return decorate


def of_mixer(name):
    return drawn_by(MIXERS[name])


def pastes_of(operation):
    return operation.pastes if isinstance(operation, PerPeer) else (operation,)


def inside(low, high, place):
    return all(a <= i < z for a, i, z in zip(low, place, high, strict=True))


def share_kept(operation, b):
    """What sample ``b`` keeps of itself, counted or read, as a float."""
    if isinstance(operation, Blend):
        return float(operation.lam if operation.lam.ndim == 0 else operation.lam[b])
    low, high = ((bound if bound.ndim == 1 else bound[b]).tolist() for bound in (operation.low, operation.high))
    places = list(np.ndindex(*operation.size))
    return 1 - sum(inside(low, high, place) for place in places) / len(places)


def slow_apply(operation, x):
    """One operation on ``(B, ...)`` numbers in float64, place by place."""
    mixed = x.copy()
    for b in range(len(x)):
        if isinstance(operation, Blend):
            keep = share_kept(operation, b)
            mixed[b] = keep * x[b] + (1 - keep) * x[int(operation.partner[b])]
            continue
        other = x if operation.source is None else operation.source.double().numpy()
        row = b if operation.partner is None else int(operation.partner[b])
        low, high = ((bound if bound.ndim == 1 else bound[b]).tolist() for bound in (operation.low, operation.high))
        for place in np.ndindex(*operation.size):
            if inside(low, high, place):
                mixed[(b, slice(None), *place)] = other[(row, slice(None), *place)]
    return mixed


def slow_targets(plan, labels, classes, peer):
    """The labels of the mixtures in float64, from the shares counted for one peer."""
    rows = np.eye(classes)[labels.numpy()]
    for operation in plan.operations:
        one = pastes_of(operation)[peer % len(pastes_of(operation))]
        if one.partner is None:
            continue
        keep = np.array([share_kept(one, b) for b in range(len(rows))])[:, None]
        rows = keep * rows + (1 - keep) * rows[one.partner.numpy()]
    return rows


@examples(of_mixer, 40)
def test_partners_are_permutations_and_boxes_lie_in_the_image(drawn):
    everyone = list(range(len(drawn.labels)))
    for operation in drawn.plan.operations:
        for one in pastes_of(operation):
            if one.partner is not None:
                assert sorted(one.partner.tolist()) == everyone
                assert one.partner.dtype == torch.int64
            if isinstance(one, Paste):
                assert one.stage == 0
                assert (one.partner is None) != (one.source is None)
                assert one.source is None or one.source is drawn.companions
                assert torch.all((one.low >= 0) & (one.low <= one.high) & (one.high <= torch.tensor(one.size)))
            else:
                assert torch.all((one.lam >= 0) & (one.lam <= 1))
                assert one.lam.shape in ((), (len(everyone),))


@examples(of_mixer, 40)
def test_targets_are_the_fold_of_a_slow_loop_and_rows_of_shares(drawn):
    targets = drawn.plan.targets(drawn.labels, drawn.classes)
    assert targets.shape == (len(drawn.labels), drawn.classes)
    assert targets.min() >= 0
    assert targets.max() <= 1 + 1e-6
    np.testing.assert_allclose(targets.sum(1).double(), 1, atol=2e-6)
    for peer in range(PEERS):  # each sees a box of its own under the one label
        np.testing.assert_allclose(
            targets.double(), slow_targets(drawn.plan, drawn.labels, drawn.classes, peer), atol=1e-6
        )


@few(50)
@given(st.data())
def test_pasting_inside_a_class_keeps_every_label_exactly(data):
    drawn = data.draw(drawn_by(MIXERS["same-class-cutmix"], partners="same_class"))
    for operation in drawn.plan.operations:
        if operation.partner is not None:
            assert torch.equal(drawn.labels[operation.partner], drawn.labels)
            for own, other in enumerate(operation.partner.tolist()):
                assert (own == other) == ((drawn.labels == drawn.labels[own]).sum() == 1)
    assert torch.equal(drawn.plan.targets(drawn.labels, drawn.classes), torch.eye(drawn.classes)[drawn.labels])


@examples(of_mixer, 30)
def test_mixing_is_that_of_a_slow_loop_and_keeps_type_and_memory_order(drawn):
    x, before = drawn.images, drawn.images.clone()
    tolerance = 1e-12 if x.dtype == torch.float64 else 1e-5
    activation = torch.randn((len(x), 4), generator=seeded(len(x)), dtype=x.dtype)  # what a stage may put out
    for peer in range(PEERS):
        settled = drawn.plan.at(DEPTH, peer)
        for operation in settled.operations:
            assert isinstance(operation.stage, int)
            assert 0 <= operation.stage <= DEPTH
        for stage in range(DEPTH + 1):
            here = [operation for operation in settled.operations if operation.stage == stage]
            for start in (x, activation) if stage else (x,):
                mixed, wanted = settled.apply(start, stage), start.double().numpy()
                for operation in here:
                    wanted = slow_apply(operation, wanted)
                assert mixed.dtype == start.dtype
                order = CHANNELS_LAST.get(x.ndim, torch.contiguous_format) if start is x else torch.contiguous_format
                assert mixed.is_contiguous(memory_format=order) or not start.is_contiguous(memory_format=order)
                np.testing.assert_allclose(mixed.double(), wanted, rtol=0, atol=tolerance * 6)
    assert torch.equal(x, before)


@few(60)
@given(
    batch=st.integers(1, 20),
    each=st.booleans(),
    seed=st.integers(0, 2**31),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_the_gradient_of_blending_is_that_of_plain_indexing(batch, each, seed, shape):
    g = seeded(seed)
    x = torch.randn((batch, *shape), generator=g, dtype=torch.float64, requires_grad=True)
    lam = torch.rand((batch,) if each else (), generator=g, dtype=torch.float64)
    partner, weights = torch.randperm(batch, generator=g), torch.randn((batch, *shape), generator=g).double()
    (found,) = torch.autograd.grad((Blend(lam, partner)(x) * weights).sum(), x)
    share = lam.view(-1, *[1] * len(shape)) if each else lam
    (wanted,) = torch.autograd.grad(((share * x + (1 - share) * x[partner]) * weights).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# Losses

# Their parts have batch norm, and the statistics of one sample at one position are none.
NORMALISING = (LOSSES["ffl"], LOSSES["lmcl"])


@st.composite
def outputs_for(draw, cls, least_peers=1, extremes=True):
    """Outputs of any size for one loss, their targets, and the logits' kind."""
    sizes = range(least_peers, 6)
    learn, batch = draw(st.sampled_from(list(sizes))), draw(st.integers(1 + (cls in NORMALISING), 12))
    classes = draw(st.integers(2, 100))
    everyone, frozen, shadows = contract.kinds(cls, learn)
    g = seeded(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1.0, 0.0, 30.0, 1e4] if extremes else [1.0, 5.0]))
    half = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))

    def rows(*shape):
        return [torch.randn(shape, generator=g).to(half).requires_grad_() for _ in range(everyone)]

    logits = torch.randn((everyone, batch, classes), generator=g) * scale
    if scale == 1e4:  # each sure of something else, as far as numbers go
        logits = logits.sign() * scale
    logits = (logits + draw(st.sampled_from([0.0, -1e4, 7.0] if extremes else [0.0]))).requires_grad_()
    stages = [rows(batch, c, s, s) for c, s in ((3, 4), (4, 2), (5, 1))]
    shared = 2 if "trunk" in cls.needs else 0
    for stage in stages[:shared]:
        stage[1:learn] = [stage[0]] * (learn - 1)
    images = (torch.rand((batch, 3, 4, 4), generator=g),) * everyone
    outputs = Outputs(logits, tuple(zip(*stages, strict=True)), tuple(rows(batch, 6)), frozen, shadows, shared, images)
    labels = torch.randint(0, classes, (batch,), generator=g)
    lam = torch.rand((), generator=g) if draw(st.booleans()) else torch.tensor(1.0)
    targets = MixPlan((Blend(lam, torch.randperm(batch, generator=g)),)).targets(labels, classes)
    return outputs, targets, half


@contextlib.contextmanager
def told_to_one_peer(outputs):
    """A single peer may have nobody to learn from, and then the message says so."""
    try:
        yield
    except ValueError as error:
        if len(outputs.learners) != 1 or "peer" not in str(error):
            raise


def built(cls, outputs):
    """The loss with its parts, or None where it says that it is not for so many peers."""
    torch.manual_seed(0)
    loss = cls()
    with told_to_one_peer(outputs):
        loss.setup(outputs)
        return loss


def terms_of(loss, outputs, targets, half, progress=None):
    """In autocast where features are in half precision: that is where a cohort gives such."""
    as_cohorts = torch.autocast("cpu", torch.bfloat16 if half == torch.float32 else half, enabled=half != torch.float32)
    with told_to_one_peer(outputs), as_cohorts:
        return copy.deepcopy(loss)(outputs, targets, progress=progress)


@every_loss
@few(12)
@given(data=st.data())
def test_terms_and_gradients_are_finite_whatever_the_logits(name, data):
    outputs, targets, half = data.draw(outputs_for(LOSSES[name]))
    loss = built(LOSSES[name], outputs)
    terms = loss and terms_of(loss, outputs, targets, half, data.draw(st.none() | st.floats(0, 1)))
    if terms is None:
        return
    for key, term in terms.items():
        assert term.shape == (outputs.peers,)
        assert term.dtype in (torch.float32, torch.float64)
        assert term.isfinite().all(), key
        assert not term[list(outputs.frozen)].any()
    total(terms).backward()
    assert outputs.logits.grad.isfinite().all()
    assert not outputs.logits.grad[list(outputs.frozen)].any()
    leaves = [*outputs.features, *(stage for stages in outputs.stages for stage in stages), *loss.parameters()]
    for leaf in leaves:
        assert leaf.grad is None or leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name, cls in LOSSES.items() if trait(cls, "symmetric")])
@few(12)
@given(data=st.data())
def test_permuting_any_number_of_peers_permutes_the_terms(name, data):
    cls = LOSSES[name]
    outputs, targets, half = data.draw(outputs_for(cls, 2, extremes=False))
    order = data.draw(st.permutations(range(len(outputs.learners))))
    loss = built(cls, outputs)
    straight = terms_of(loss, outputs, targets, half)
    turned = terms_of(loss, contract.permuted(outputs, order), targets, half)
    for key in straight:
        torch.testing.assert_close(turned[key][: len(order)], straight[key][list(order)], rtol=1e-4, atol=1e-4)


# Learning rates


@st.composite
def rates(draw):
    return Optim(
        lr=draw(st.floats(1e-8, 10)),
        schedule=draw(st.sampled_from(["cosine", "step", "constant"])),
        milestones=tuple(draw(st.lists(st.floats(0.01, 0.99), max_size=4))),
        gamma=draw(st.floats(0, 1)),
        warmup=draw(st.just(0.0) | st.floats(1e-3, 0.99)),
    )


@few(100)
@given(rates(), st.floats(0, 1), st.floats(0, 1))
@example(Optim(lr=0.1, warmup=0.0), 0.0, 1.0)
def test_rates_are_bounded_continuous_but_for_milestones_and_end_where_they_should(optim, one, other):
    for at in (one, other, 0.0, 1.0, optim.warmup):
        assert 0 <= optim.rate(at) <= optim.lr * (1 + 1e-12)
    assert optim.rate(0.0) == (0.0 if optim.warmup else optim.lr)
    ends = {"cosine": 0.0, "constant": optim.lr, "step": optim.lr * optim.gamma ** len(optim.milestones)}
    assert optim.rate(1.0) == pytest.approx(ends[optim.schedule], rel=1e-9, abs=1e-12 * optim.lr)
    if optim.schedule != "step":
        steepest = optim.lr * max(1 / optim.warmup if optim.warmup else 0, math.pi / 2 / (1 - optim.warmup))
        assert abs(optim.rate(one) - optim.rate(other)) <= steepest * abs(one - other) * (1 + 1e-9) + 1e-12 * optim.lr
    first, second = sorted((one, other))
    if first >= optim.warmup:
        assert optim.rate(second) <= optim.rate(first)
    elif second < optim.warmup:
        assert optim.rate(first) <= optim.rate(second)
