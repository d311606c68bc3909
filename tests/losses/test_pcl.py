"""PCL against the formula of the paper, peer by peer and sample by sample in float64, and its averages step by step."""

import copy
import functools
import math
import pickle

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.types import Outputs, total
from metamixer.losses import PCL
from tests import oracle, toys
from tests.oracle import log_softmax

draw = functools.partial(oracle.draw, scale=2.0)


def outputs_of(peers, batch=3, classes=4, widths=None):
    """Peers and their shadows; features of different widths; all leaves."""
    widths = widths or [3 + i for i in range(peers)]
    features = [draw(batch, width, seed=10 + i).requires_grad_() for i, width in enumerate([*widths, *widths])]
    logits = draw(2 * peers, batch, classes).requires_grad_()
    return Outputs(logits, features=tuple(features), frozen=tuple(range(peers, 2 * peers)), shadows=peers)


def built(outputs, **settings):
    torch.manual_seed(3)
    loss = PCL(**settings)
    loss.setup(outputs)
    return loss


def slow_pcl(loss, outputs, targets, temperature, share):
    """The four terms, (P,) each, with zeros for the shadows."""
    _, batch, classes = outputs.logits.shape
    peers = outputs.shadows
    weight, bias = loss.classifier.weight, loss.classifier.bias
    ensemble = []
    for b in range(batch):
        joined = [value for i in range(peers) for value in outputs.features[i][b]]
        ensemble.append(
            torch.stack([bias[c] + sum(w * f for w, f in zip(weight[c], joined, strict=True)) for c in range(classes)])
        )

    def cross_entropy(z):
        return -sum(targets[b, c] * log_softmax(z[b])[c] for b in range(batch) for c in range(classes)) / batch

    def divergence(teacher, student):
        found = 0.0
        for b in range(batch):
            p, q = log_softmax(teacher[b].detach() / temperature), log_softmax(student[b] / temperature)
            found = found + sum(p[c].exp() * (p[c] - q[c]) for c in range(classes)) * temperature**2 / batch
        return found

    z, zero = outputs.logits, torch.zeros((), dtype=torch.float64)
    found = {"task": [], "ensemble": [], "distill_ensemble": [], "distill_average": []}
    for i in range(peers):
        found["task"].append(cross_entropy(z[i]))
        found["ensemble"].append(cross_entropy(ensemble) / peers)
        found["distill_ensemble"].append(share * divergence(ensemble, z[i]))
        others = [divergence(z[peers + j], z[i]) for j in range(peers) if j != i]
        found["distill_average"].append(share * sum(others) / len(others) if others else zero)
    return {name: torch.stack([*row, *[zero] * peers]) for name, row in found.items()}


@pytest.mark.parametrize(("temperature", "weight", "progress"), [(3.0, 1.0, None), (1.0, 0.5, 0.1), (2.0, 1.0, 0.9)])
@pytest.mark.parametrize("peers", [1, 2, 3])
def test_pcl_is_the_slow_loop(peers, temperature, weight, progress):
    outputs, targets = outputs_of(peers), draw(3, 4, seed=1).softmax(-1)
    loss = built(outputs, temperature=temperature, weight=weight)
    share = weight * (1.0 if progress is None else math.exp(-5 * (1 - min(progress / 0.2667, 1)) ** 2))
    found, wanted = loss(outputs, targets, progress), slow_pcl(loss, outputs, targets, temperature, share)
    assert list(found) == list(wanted)
    leaves = [outputs.logits, *outputs.features, *loss.parameters()]
    for name, term in wanted.items():
        torch.testing.assert_close(found[name], term)
        for i in range(peers):
            grads = [
                torch.autograd.grad(each[i], leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
                if each[i].requires_grad
                else [torch.zeros_like(leaf) for leaf in leaves]
                for each in (found[name], term)
            ]
            for one, other in zip(*grads, strict=True):
                torch.testing.assert_close(one, other)


def test_what_learns_from_what():
    """The ensemble's cross-entropy trains its layer and all peers; as teachers ensemble and averages stay still."""
    outputs, targets = outputs_of(3), draw(3, 4, seed=1).softmax(-1)
    loss = built(outputs)
    terms = loss(outputs, targets)
    leaves = [outputs.logits, *outputs.features, *loss.parameters()]

    def reached(name):
        grads = torch.autograd.grad(terms[name].sum(), leaves, retain_graph=True, allow_unused=True)
        logits = [] if grads[0] is None else [i for i, grad in enumerate(grads[0]) if grad.any()]
        return logits, [i for i, grad in enumerate(grads[1:]) if grad is not None and grad.any()]

    assert reached("task") == ([0, 1, 2], [])
    assert reached("ensemble") == ([], [0, 1, 2, 6, 7])  # the peers' features, weight and bias
    assert reached("distill_ensemble") == ([0, 1, 2], [])
    assert reached("distill_average") == ([0, 1, 2], [])


def test_hard_labels_and_one_view_for_all():
    outputs = outputs_of(2)
    targets = torch.eye(4, dtype=torch.float64)[[1, 0, 3]]
    terms = built(outputs)(outputs, targets)
    wanted = [nn.functional.cross_entropy(outputs.logits[i], torch.tensor([1, 0, 3])) for i in range(2)]
    torch.testing.assert_close(terms["task"][:2], torch.stack(wanted))


def test_progress_as_a_tensor_stays_one():
    outputs, targets = outputs_of(2), draw(3, 4, seed=1).softmax(-1)
    loss = built(outputs)
    progress = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    as_tensor, as_number = loss(outputs, targets, progress), loss(outputs, targets, 0.1)
    for name in as_number:
        torch.testing.assert_close(as_tensor[name], as_number[name])
    assert as_tensor["distill_average"].sum().requires_grad
    assert torch.autograd.grad(as_tensor["distill_average"].sum(), progress)[0] != 0


# Its own parts


def test_setup_happens_once():
    outputs = outputs_of(3, widths=[5, 2, 4])
    loss = built(outputs)
    assert [tuple(p.shape) for p in loss.parameters()] == [(4, 11), (4,)]
    layer = loss.classifier
    loss.setup(outputs)
    assert loss.classifier is layer
    loss.setup(outputs_of(2))
    assert loss.classifier is not layer
    assert set(loss.state_dict()) == {"count.steps", "classifier.weight", "classifier.bias"}


def test_copies_and_restored_ones_are_equal():
    outputs, targets = outputs_of(2), draw(3, 4, seed=1).softmax(-1)
    loss = built(outputs)
    fresh = PCL()
    fresh.setup(outputs)
    fresh.load_state_dict(loss.state_dict())
    for twin in (fresh, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        found, wanted = twin(outputs, targets), loss(outputs, targets)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# The averages


class Follower:
    """A cohort that only notes how its shadows follow."""

    def __init__(self):
        self.decays = []

    def update_shadows(self, decay):
        self.decays.append(decay)


def test_decay():
    loss, cohort = PCL(decay=0.9), Follower()
    for _ in range(40):
        loss.after_step(cohort)
    assert cohort.decays[:4] == pytest.approx([0, 1 / 2, 2 / 3, 3 / 4])
    assert cohort.decays[9:] == pytest.approx([0.9] * 31)
    assert loss.count.steps == 40


def test_the_count_is_resumed():
    loss, straight = PCL(), Follower()
    for _ in range(3):
        loss.after_step(straight)
    state = copy.deepcopy(loss.state_dict())
    twins = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), PCL()]
    twins[2].after_step(Follower())
    twins[2].load_state_dict(state)
    for _ in range(2):
        loss.after_step(straight)
    for twin in twins:
        resumed = Follower()
        for _ in range(2):
            twin.after_step(resumed)
        assert resumed.decays == straight.decays[3:] == pytest.approx([3 / 4, 4 / 5])
        assert twin.count.steps == 5


def test_at_first_the_averages_are_the_mean_of_all_steps():
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double() for _ in range(2)]
    cohort, loss = Cohort(networks, stages=["1"], shadows=True), PCL()
    seen = []
    for step in range(5):
        for peer in networks:
            for p in peer.parameters():
                p.data = draw(*p.shape, seed=step)
            peer(draw(6, 4, seed=step))  # moves the statistics
        seen.append([copy.deepcopy(peer.state_dict()) for peer in networks])
        loss.after_step(cohort)
    for i in range(2):
        for name, value in cohort.peers[2 + i].state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value, sum(step[i][name] for step in seen) / 5)
            else:
                assert value == seen[-1][i][name]


def test_the_averages_are_deployed():
    assert list(PCL().deployable(6)) == [3, 4, 5]


# A whole run


def small_cohort(trunk):
    networks = [toys.network(seed) for seed in range(2)]
    if trunk:
        share_trunk(networks, "0")
    return Cohort(networks, stages=["0", "1"], shadows=True)


def make(folder, trunk):
    made = toys.trainer(folder, epochs=3, loss=PCL(ramp_up=0.2), seed=1)
    made.cohort = small_cohort(trunk)
    made.names = tuple("abcd")
    return made


@pytest.mark.parametrize("trunk", [False, True])
def test_a_resumed_run_ends_in_the_same_bits_and_deploys_an_average(trunk, tmp_path):
    straight = make(tmp_path / "straight", trunk)
    fitted = straight.fit(toys.loader(), toys.validation())
    assert fitted.best.peer in (2, 3)
    broken = make(tmp_path / "resumed", trunk)
    with pytest.raises(ConnectionError):
        broken.fit(toys.StopAt(toys.loader(), 7), toys.validation())
    resumed = make(tmp_path / "resumed", trunk)
    resumed.fit(toys.loader(), toys.validation(), resume=True)
    assert straight.loss.count.steps == resumed.loss.count.steps == 15
    assert all(torch.equal(value, toys.weights(resumed)[name]) for name, value in toys.weights(straight).items())
    for name, value in straight.loss.state_dict().items():
        assert torch.equal(value, resumed.loss.state_dict()[name])


# What does not fit


def test_a_cohort_without_shadows_is_refused():
    plain = Outputs(torch.zeros(2, 3, 4), features=(torch.zeros(3, 5),) * 2)
    with pytest.raises(ValueError, match=r"shadows=True"):
        PCL().setup(plain)
    with pytest.raises(ValueError, match=r"shadows=True"):
        PCL()(plain, torch.full((3, 4), 0.25))


def test_without_features_or_setup():
    with pytest.raises(ValueError, match="features"):
        PCL().setup(Outputs(torch.zeros(4, 3, 4), frozen=(2, 3), shadows=2))
    with pytest.raises(ValueError, match="setup"):
        PCL()(outputs_of(2), draw(3, 4).softmax(-1))


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 0.0}, {"weight": -1.0}, {"decay": 1.5}, {"ramp_up": -0.1}, {"decay": float("nan")}],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        PCL(**setting)


def test_labels_as_class_indices_are_refused():
    outputs = outputs_of(2)
    with pytest.raises(ValueError, match="soft ones of"):
        built(outputs)(outputs, torch.tensor([0, 1, 2]))


def test_a_backward_pass_of_a_real_cohort_reaches_every_peer():
    cohort = small_cohort(trunk=True)
    images = torch.randn(4, 1, 8, 8)
    outputs = cohort((images, images + 1))
    loss = PCL()
    loss.setup(outputs)
    total(loss(outputs, torch.full((4, 3), 1 / 3))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cohort.parameters() if p.requires_grad)
    assert all(p.grad is None for p in cohort.peers[2:].parameters())
