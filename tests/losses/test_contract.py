"""What every mixer and every loss promises. The registry names them, so a new one is covered unasked.

Each is built with its defaults. Where the paper of a method means a promise otherwise, ``traits.py`` says so;
``task_weight`` is an attribute of losses that weigh the cross-entropy by a number other than 1.
"""

import copy
import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.core.plan import MixPlan
from metamixer.core.types import Batch, Outputs, total
from metamixer.losses import Loss
from metamixer.mixers import MetaMixer, NoMix
from metamixer.training.train_step import train_step
from tests.losses.traits import trait
from tests.oracle import seeded

LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 4, 2])
CLASSES = 5

every_mixer = pytest.mark.parametrize("name", MIXERS)
every_loss = pytest.mark.parametrize("name", LOSSES)


def has(mixer, ending):
    """The names of a mixer's settings that end so: MetaMixer has a probability for each half."""
    return [field.name for field in dataclasses.fields(mixer) if field.name.endswith(ending)]


def variants(name):
    """A mixer with its defaults, with every choice per sample, and always on."""
    cls = MIXERS[name]
    always = dict.fromkeys(has(cls, "probability"), 1.0)
    each = {setting: "sample" for setting in ("box", "lam") if setting in has(cls, setting)}
    return {"defaults": cls(), "always": cls(**always), "each": cls(**always, **each)}


def plain(value):
    """A plan as nested lists, to compare."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return [type(value).__name__, *(plain(getattr(value, field.name)) for field in dataclasses.fields(value))]
    return [plain(each) for each in value] if isinstance(value, tuple) else value


def images_of(size, dtype=torch.float32, device="cpu"):
    return torch.rand((8, 3, *size), generator=seeded(9)).to(device, dtype)


# Mixers


@every_mixer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [(11,), (6, 7), (4, 3, 5)], ids=str)
@pytest.mark.parametrize("companions", [False, True], ids=["alone", "companions"])
def test_signals_images_volumes_in_any_precision(name, size, dtype, companions):
    x = images_of(size, dtype)
    for mixer in variants(name).values():
        for seed in range(3):
            plan = mixer(x, LABELS, companions=1 - x if companions else None, generator=seeded(seed))
            for stage in range(4):
                mixed = plan.at(3).apply(x, stage)
                assert mixed.dtype == dtype
                assert mixed.shape == x.shape
                assert mixed.min() >= 0  # mixtures of numbers in [0, 1]
                assert mixed.max() <= 1


@every_mixer
@pytest.mark.parametrize("companions", [False, True], ids=["alone", "companions"])
@pytest.mark.parametrize("size", [(30,), (8, 9), (4, 5, 6)], ids=str)
def test_labels_say_what_the_images_hold(name, size, companions):
    """Each image fills the channel of its class. Mixed at all stages, the mean of channel c is the share of class c."""
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[LABELS]
    x = one_hot.view(8, CLASSES, *[1] * len(size)).expand(8, CLASSES, *size)
    for mixer in variants(name).values():
        for seed in range(6):
            plan = mixer(x, LABELS, companions=x.clone() if companions else None, generator=seeded(seed))
            mixed = x
            for stage in range(4):
                mixed = plan.at(3).apply(mixed, stage)
            targets = plan.targets(LABELS, CLASSES)
            assert targets.dtype == torch.float32
            torch.testing.assert_close(mixed.flatten(2).mean(-1).float(), targets)
            assert targets.min() >= 0
            torch.testing.assert_close(targets.sum(-1), torch.ones(8))


@every_mixer
def test_one_seed_is_one_plan_and_nothing_else_is_touched(name):
    for mixer in variants(name).values():
        plans = []
        for world in (0, 1, 2):
            torch.manual_seed(world)
            np.random.seed(world)
            random.seed(world)
            before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            g = seeded(5)
            plans.append([plain(mixer(images_of((6, 6)), LABELS, generator=g)) for _ in range(4)])
            after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
            assert torch.equal(before[0], after[0])
            assert before[1:] == after[1:]
        assert plans[0] == plans[1] == plans[2]


@every_mixer
def test_without_a_generator_the_global_one_decides(name):
    mixer = variants(name)["always"]

    def draw(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return plain(mixer(images_of((6, 6)), LABELS))

    assert draw(0) == draw(0)
    assert name == "none" or draw(0) != draw(1)


@every_mixer
def test_a_plan_only_needs_shapes(name):
    """On the meta device there is no data: whoever reads a value on the host, which stops a GPU, fails."""
    x, labels = images_of((6, 6), device="meta"), LABELS.to("meta")
    for mixer in variants(name).values():
        for companions in (None, x):
            plan = mixer(x, labels, companions=companions, generator=seeded())
            for stage in range(3):
                assert plan.at(3).apply(x, stage).shape == x.shape
            assert plan.targets(labels, CLASSES).shape == (8, CLASSES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_mixer
def test_a_seed_is_one_plan_on_every_device(name):
    x = images_of((6, 6))
    for mixer in variants(name).values():
        here, there = (mixer(x.to(d), LABELS.to(d), generator=seeded(3)) for d in ("cpu", "cuda"))
        assert plain(here) == plain(there)
        torch.testing.assert_close(there.targets(LABELS.cuda(), CLASSES).cpu(), here.targets(LABELS, CLASSES))
        for stage in range(3):
            torch.testing.assert_close(there.at(3).apply(x.cuda(), stage).cpu(), here.at(3).apply(x, stage))


@every_mixer
def test_images_are_left_as_they_were(name):
    x, companions = images_of((6, 6)), images_of((6, 6)) + 1
    before = x.clone(), companions.clone()
    for mixer in variants(name).values():
        plan = mixer(x, LABELS, companions=companions, generator=seeded()).at(3)
        for stage in range(4):
            plan.apply(x, stage)
    assert torch.equal(x, before[0])
    assert torch.equal(companions, before[1])


@every_mixer
def test_a_batch_of_one_and_a_batch_of_one_class(name):
    for labels in (torch.tensor([3]), torch.full((8,), 3)):
        x = images_of((6, 6))[: len(labels)]
        for mixer in variants(name).values():
            plan = mixer(x, labels, generator=seeded(1))
            torch.testing.assert_close(plan.targets(labels, CLASSES), torch.eye(CLASSES)[labels])
            if len(labels) == 1:
                for stage in range(4):
                    assert torch.equal(plan.at(3).apply(x, stage), x)


@every_mixer
def test_probability_zero_and_a_window_that_is_over_mix_nothing(name):
    cls = MIXERS[name]
    mixers = [cls(**dict.fromkeys(has(cls, "probability"), 0.0))] if has(cls, "probability") else []
    mixers += [cls(until=0.5), cls(until=0.5, ramp=0.2)] if has(cls, "until") else []
    assert mixers or name == "none"
    for mixer in mixers:
        for seed in range(20):
            assert mixer(images_of((6, 6)), LABELS, generator=seeded(seed), progress=0.5) == MixPlan()


@every_mixer
def test_a_mixer_is_a_value(name):
    mixer = MIXERS[name]()
    assert pickle.loads(pickle.dumps(mixer)) == copy.deepcopy(mixer) == mixer == MIXERS[name]()
    assert hash(mixer) == hash(MIXERS[name]())
    for field in dataclasses.fields(mixer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(mixer, field.name, None)
    plan = pickle.loads(pickle.dumps(variants(name)["always"](images_of((6, 6)), LABELS, generator=seeded())))
    assert plain(plan) == plain(variants(name)["always"](images_of((6, 6)), LABELS, generator=seeded()))


# Losses


def kinds(loss, peers):
    """How many peers there are in all, which are frozen, and how many of them are shadows."""
    if loss.shadows:
        return 2 * peers, tuple(range(peers, 2 * peers)), peers
    if "teacher" in loss.needs:
        return peers + 1, (peers,), 0
    return peers, (), 0


def outputs_of(loss, peers=3, seed=0, identical=False, scale=2.0):
    """Logits, features and three stages for ``peers`` learning peers, and what else the loss needs: all leaves."""
    g = seeded(seed)
    everyone, frozen, shadows = kinds(loss, peers)

    def draw(*shape):
        rows = [torch.randn(shape, generator=g) for _ in range(everyone)]
        return [rows[0].clone() for _ in rows] if identical else rows

    logits = torch.stack(draw(8, CLASSES)).mul(scale).requires_grad_()
    stages = [[stage.requires_grad_() for stage in draw(8, c, s, s)] for c, s in ((4, 8), (6, 4), (8, 2))]
    shared = 2 if "trunk" in loss.needs else 0
    for stage in stages[:shared]:
        stage[1:peers] = [stage[0]] * (peers - 1)
    features = tuple(row.requires_grad_() for row in draw(8, 6))
    images = (images_of((6, 6)),) * everyone
    return Outputs(logits, tuple(zip(*stages, strict=True)), features, frozen, shadows, shared, images)


def permuted(outputs, order):
    """The same peers in another order; shadows follow theirs, a teacher stays the last."""
    learn = len(outputs.learners)
    rows = [*order, *(learn + peer for peer in order)] if outputs.shadows else [*order, *outputs.frozen]
    return dataclasses.replace(
        outputs,
        logits=torch.stack([outputs.logits[row] for row in rows]),
        stages=tuple(outputs.stages[row] for row in rows),
        features=tuple(outputs.features[row] for row in rows),
    )


def targets_of(seed=0):
    mixer = MetaMixer(local_probability=1.0, global_probability=1.0)
    return mixer(images_of((6, 6)), LABELS, generator=seeded(seed)).targets(LABELS, CLASSES)


every_loss_and_number = pytest.mark.parametrize(
    ("name", "peers"), [(name, peers) for name in LOSSES for peers in (2, 3)]
)


def build(name, outputs):
    torch.manual_seed(0)
    loss = LOSSES[name]()
    loss.setup(outputs)
    return loss


def run(loss, outputs, targets):
    """A fresh copy each time: a method may remember what it saw."""
    return copy.deepcopy(loss)(outputs, targets)


def per_peer(terms):
    """``(P,)``: all terms of each peer."""
    return torch.stack(list(terms.values())).sum(0)


@every_loss_and_number
def test_terms_are_one_finite_number_a_peer_with_gradients(name, peers):
    outputs, targets = outputs_of(LOSSES[name], peers), targets_of()
    terms = run(build(name, outputs), outputs, targets)
    assert "task" in terms
    learners = list(outputs.learners)
    for term in terms.values():
        assert term.shape == (outputs.peers,)
        assert term.dtype == torch.float32
        assert term.isfinite().all()
        assert not term[list(outputs.frozen)].any(), "who does not learn has no terms"
    for value in per_peer(terms)[learners]:
        (grad,) = torch.autograd.grad(value, outputs.logits, retain_graph=True)
        assert grad.isfinite().all()
    total(terms).backward()
    assert (outputs.logits.grad.flatten(1).norm(dim=1)[learners] > 1e-3).all()
    assert not outputs.logits.grad[list(outputs.frozen)].any()


@every_loss
def test_a_single_peer_is_refused_or_has_finite_terms(name):
    outputs = outputs_of(LOSSES[name], 1)
    try:
        terms = run(build(name, outputs), outputs, targets_of())
    except ValueError as error:
        refused = str(error)
    else:
        refused = "" if all(term.isfinite().all() for term in terms.values()) else "a term is not finite"
    assert not refused or "peer" in refused


@every_loss_and_number
def test_masked_classes_are_left_out(name, peers):
    """Logits of -inf, as some mask the classes of other tasks: no term is NaN, and it is as if the class were not."""
    outputs, targets = outputs_of(LOSSES[name], peers), targets_of()
    assert not targets[:, 3].any(), "nobody is of the class that is masked"
    left = [0, 1, 2, 4]
    masked = outputs.logits.detach().clone()
    masked[..., 3] = -torch.inf
    masked.requires_grad_()
    without = outputs.logits.detach()[..., left].requires_grad_()
    loss = build(name, dataclasses.replace(outputs, logits=masked))
    terms = run(loss, dataclasses.replace(outputs, logits=masked), targets)
    assert all(term.isfinite().all() for term in terms.values()), terms
    total(terms).backward()
    assert masked.grad.isfinite().all()
    assert not masked.grad[..., 3].any()
    if not list(loss.parameters()):
        wanted = run(loss, dataclasses.replace(outputs, logits=without), targets[:, left])
        total(wanted).backward()
        torch.testing.assert_close(terms, wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(masked.grad[..., left], without.grad, rtol=1e-4, atol=1e-7)


@every_loss
def test_a_masked_class_that_somebody_is_of_has_an_infinite_loss(name):
    outputs, targets = outputs_of(LOSSES[name], 2), targets_of()
    logits = outputs.logits.detach().clone()
    logits[..., 0] = -torch.inf
    terms = run(build(name, outputs), dataclasses.replace(outputs, logits=logits), targets)
    assert not torch.stack(list(terms.values())).isfinite().all()


@every_loss
def test_permuting_peers_permutes_terms(name):
    peers = 3
    outputs, targets = outputs_of(LOSSES[name], peers), targets_of()
    loss = build(name, outputs)
    if not trait(type(loss), "symmetric"):
        pytest.skip("the peers of this method have different parts")
    order = [2, 0, 1][-peers:]
    straight, turned = run(loss, outputs, targets), run(loss, permuted(outputs, order), targets)
    for key in straight:
        torch.testing.assert_close(turned[key][:peers], straight[key][order])
        assert key != "task" or len(set(straight[key][:peers].tolist())) == peers


@every_loss_and_number
def test_identical_peers_have_nothing_to_distil(name, peers):
    outputs = outputs_of(LOSSES[name], peers, identical=True)
    loss = build(name, outputs)
    if trait(type(loss), "distils_identical_peers"):
        pytest.skip("the teacher of this method is none of the peers")
    for key, term in run(loss, outputs, targets_of()).items():
        if "distill" in key:
            torch.testing.assert_close(term, torch.zeros(outputs.peers), rtol=0, atol=1e-6)


@every_loss
def test_different_peers_have_something_to_distil(name):
    outputs = outputs_of(LOSSES[name], 3)
    for key, term in run(build(name, outputs), outputs, targets_of()).items():
        assert "distill" not in key or (term[list(outputs.learners)].sum() > 1e-3)


@every_loss
def test_no_gradient_crosses_between_peers(name):
    peers = 3
    outputs = outputs_of(LOSSES[name], peers)
    loss = build(name, outputs)
    if trait(type(loss), "crosses_peers"):
        pytest.skip("a gradient crosses between the peers of this method on purpose")
    own = [
        [stage for k, stage in enumerate(outputs.stages[peer]) if k >= outputs.shared] + [outputs.features[peer]]
        for peer in range(outputs.peers)
    ]
    for i, value in enumerate(per_peer(run(loss, outputs, targets_of()))[:peers]):
        flat = [leaf for leaves in own for leaf in leaves]
        of_logits, *rest = torch.autograd.grad(value, [outputs.logits, *flat], retain_graph=True, allow_unused=True)
        assert [bool(grad.any()) for grad in of_logits] == [j == i for j in range(outputs.peers)]
        left = iter(rest)
        for j, leaves in enumerate(own):
            grads = [next(left) for _ in leaves]
            assert j == i or not any(grad is not None and grad.any() for grad in grads)


@every_loss
def test_an_empty_plan_is_plain_training(name):
    outputs = outputs_of(LOSSES[name], 3)
    targets = MixPlan().targets(LABELS, CLASSES)
    loss = build(name, outputs)
    learners = list(outputs.learners)
    found = run(loss, outputs, targets)["task"]
    weight = getattr(loss, "task_weight", 1.0)
    wanted = weight * torch.stack([F.cross_entropy(outputs.logits[peer], LABELS) for peer in learners])
    torch.testing.assert_close(found[learners], wanted)
    grads = [torch.autograd.grad(v.sum(), outputs.logits, retain_graph=True)[0] for v in (found, wanted)]
    torch.testing.assert_close(*grads)


@every_loss
@pytest.mark.parametrize("scale", [2e4, 0.0])
def test_sure_and_clueless_peers(name, scale):
    outputs = outputs_of(LOSSES[name], 3, scale=scale)
    terms = run(build(name, outputs), outputs, targets_of())
    assert all(term.isfinite().all() for term in terms.values()), terms
    total(terms).backward()
    assert outputs.logits.grad.isfinite().all()


@every_loss
def test_labels_as_class_indices_are_refused(name):
    outputs = outputs_of(LOSSES[name], 3)
    with pytest.raises(ValueError, match="soft"):
        run(build(name, outputs), outputs, LABELS)


@every_loss
def test_a_loss_is_copied_pickled_and_restored(name):
    outputs, targets = outputs_of(LOSSES[name], 3), targets_of()
    loss = build(name, outputs)
    twins = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), build(name, outputs)]
    twins[2].load_state_dict(loss.state_dict())
    wanted = run(loss, outputs, targets)
    for twin in twins:
        found = run(twin, outputs, targets)
        assert list(found) == list(wanted)
        for key in wanted:
            assert torch.equal(found[key], wanted[key])


@every_loss
def test_progress_is_taken_as_a_number_and_as_a_tensor(name):
    """A captured graph reads the progress from a tensor."""
    outputs, targets = outputs_of(LOSSES[name], 3), targets_of()
    loss = build(name, outputs)
    for progress in (None, 0.0, 0.13, 0.5, 1.0):
        terms = copy.deepcopy(loss)(outputs, targets, progress=progress)
        assert all(term.isfinite().all() for term in terms.values()), terms
        if progress is not None:
            tensor = torch.tensor(progress, dtype=torch.float64)
            for name_, term in copy.deepcopy(loss)(outputs, targets, progress=tensor).items():
                torch.testing.assert_close(term.float(), terms[name_])


@every_loss
def test_a_loss_says_what_it_needs(name):
    cls = LOSSES[name]
    known = {"features", "stages", "trunk", "views", "shadows", "teacher", "held-out", "pixels", "per-class"}
    assert set(cls.needs) <= known
    assert ("shadows" in cls.needs) == bool(cls.shadows)


# Every mixer with every loss


def tiny(loss=Loss, peers=2):
    torch.manual_seed(0)
    everyone, frozen, shadows = kinds(loss, peers)
    networks = [
        nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        )
        for _ in range(everyone - shadows)
    ]
    if "trunk" in loss.needs:
        share_trunk(networks, "1")
    return Cohort(networks, stages=["1", "3"], frozen=() if shadows else frozen, shadows=shadows > 0)


@every_mixer
@pytest.mark.parametrize("loss_name", LOSSES)
def test_a_step_reduces_the_loss(name, loss_name):
    cohort, mixer = tiny(LOSSES[loss_name]), variants(name)["always"]
    batch = Batch(images_of((7, 7)), LABELS, companions=images_of((7, 7)).flip(-1))
    loss = build(loss_name, cohort(batch.images, MixPlan()))
    game = trait(type(loss), "plays_a_game")  # then one player's gain is the other's loss

    def value(after=False):
        used = loss if after else copy.deepcopy(loss)
        terms = train_step(cohort, mixer, used, batch, seeded(2)).terms
        return terms["task"].sum() if game and not after else total(terms)

    optimizer = torch.optim.SGD([p for p in [*cohort.parameters(), *loss.parameters()] if p.requires_grad], lr=0.02)
    first = value()
    for _ in range(3):
        before = value()
        optimizer.zero_grad()
        value(after=True).backward()
        optimizer.step()
        assert value() < before
        loss.after_step(cohort)
    assert value() < first
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cohort.parameters() if p.requires_grad)


@every_loss
def test_no_mixing_hands_on_plain_images_and_labels(name):
    """NoMix gives the loss one-hot targets, and the networks their images unchanged."""
    cohort = tiny(LOSSES[name])
    batch = Batch(images_of((7, 7)), LABELS)
    step = train_step(cohort, NoMix(), build(name, cohort(batch.images)), batch)
    assert torch.equal(step.targets, torch.eye(CLASSES)[LABELS])
    assert torch.equal(step.outputs.logits, torch.stack([peer(batch.images) for peer in cohort.peers]))
