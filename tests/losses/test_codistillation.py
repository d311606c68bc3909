"""Codistillation against Algorithm 1 of the paper in float64, and peers that exchange weights through files."""

import copy
import functools
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.types import Outputs, total
from metamixer.losses import Codistillation
from tests import oracle
from tests.oracle import log_softmax

draw = functools.partial(oracle.draw, scale=2.0)


def slow_codistillation(own, teachers, targets, temperature, weight):
    """``own``: (L, B, C); ``teachers[i]``: the logits (B, C) of those that peer i learns from."""
    learners, batch, classes = own.shape
    task, distill = [], []
    for i in range(learners):
        cross_entropy = divergence = 0 * own[i].sum()
        for b in range(batch):
            log_p, student = log_softmax(own[i, b]), log_softmax(own[i, b] / temperature)
            for c in range(classes):
                cross_entropy = cross_entropy - targets[b, c] * log_p[c] / batch
                if not teachers[i]:
                    continue
                mean = sum(log_softmax(z[b].detach() / temperature)[c].exp() for z in teachers[i]) / len(teachers[i])
                divergence = divergence + weight * temperature**2 * mean * (mean.log() - student[c]) / batch
        task.append(cross_entropy)
        distill.append(divergence)
    return torch.stack(task), torch.stack(distill)


def with_shadows(peers):
    logits = draw(2 * peers, 3, 4).requires_grad_()
    return Outputs(logits, frozen=tuple(range(peers, 2 * peers)), shadows=peers)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (2.0, 0.3)])
@pytest.mark.parametrize("peers", [1, 2, 3, 4])
def test_codistillation_is_the_slow_loop(peers, temperature, weight):
    outputs, targets = with_shadows(peers), draw(3, 4, seed=1).softmax(-1)
    logits = outputs.logits
    terms = Codistillation(weight, temperature)(outputs, targets)
    teachers = [[logits[peers + j] for j in range(peers) if j != i] for i in range(peers)]
    task, distill = slow_codistillation(logits[:peers], teachers, targets, temperature, weight)
    for name, wanted in (("task", task), ("distill", distill)):
        torch.testing.assert_close(terms[name][:peers], wanted)
        assert not terms[name][peers:].any()
    for i in range(peers):
        found = torch.autograd.grad(terms["task"][i] + terms["distill"][i], logits, retain_graph=True)[0]
        torch.testing.assert_close(found, torch.autograd.grad(task[i] + distill[i], logits, retain_graph=True)[0])
        assert not found[[j for j in range(2 * peers) if j != i]].any()


def test_the_gradient_is_that_of_the_papers_cross_entropy():
    outputs, targets = with_shadows(3), draw(3, 4, seed=1).softmax(-1)
    logits = outputs.logits
    found = torch.autograd.grad(Codistillation()(outputs, targets)["distill"].sum(), logits)[0]
    p = logits[3:].detach().softmax(-1)
    mean = torch.stack([(p.sum(0) - p[i]) / 2 for i in range(3)])
    cross_entropy = -(mean * logits[:3].log_softmax(-1)).sum(-1).mean(-1)
    torch.testing.assert_close(found, torch.autograd.grad(cross_entropy.sum(), logits)[0])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_burn_in(as_tensor):
    outputs, targets = with_shadows(2), draw(3, 4, seed=1).softmax(-1)
    loss = Codistillation(burn_in=0.25)
    full = loss(outputs, targets)
    for progress, on in ((0.0, 0), (0.2499, 0), (0.25, 1), (1.0, 1)):
        given = torch.tensor(progress, dtype=torch.float64) if as_tensor else progress
        terms = loss(outputs, targets, progress=given)
        torch.testing.assert_close(terms["distill"], on * full["distill"])
        torch.testing.assert_close(terms["task"], full["task"])


def test_sure_teachers_and_half_precision_stay_finite():
    for dtype in (torch.float16, torch.float32):
        logits = torch.zeros(4, 3, 5, dtype=dtype)
        logits[0, :, 0] = logits[1, :, 1] = logits[2, :, 2] = logits[3, :, 3] = 1e4
        outputs = Outputs(logits.requires_grad_(), frozen=(2, 3), shadows=2)
        terms = Codistillation()(outputs, torch.eye(5)[[0, 1, 4]])
        total(terms).backward()
        assert logits.grad.isfinite().all()
        torch.testing.assert_close(terms["distill"], torch.tensor([1e4, 1e4, 0, 0]))


# Copies in one process


def network(seed, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


STAGES = ["2"]


def data(seed=0):
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(seed))
    return x, torch.eye(3)[(x[:, 0] > 0).long() + (x[:, 1] > 0).long()]


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(network, weights):
    return all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


def one_step(cohort, loss, seed, progress=None, after=True):
    x, targets = data(seed)
    terms = loss(cohort(x), targets, progress=progress)
    weights = [p for p in cohort.parameters() if p.requires_grad]
    grads = torch.autograd.grad(total(terms), weights)
    with torch.no_grad():
        for weight, grad in zip(weights, grads, strict=True):
            weight -= 0.1 * grad
    if after:
        loss.after_step(cohort)
    return terms


def test_copies_are_refreshed_every_interval():
    cohort, loss = Cohort([network(0), network(1)], stages=STAGES, shadows=True), Codistillation(interval=3)
    kept = [state(peer) for peer in cohort.peers[:2]]
    for step in range(1, 8):
        one_step(cohort, loss, step)
        if step % 3 == 0:
            kept = [state(peer) for peer in cohort.peers[:2]]
        assert all(same(cohort.peers[2 + i], kept[i]) for i in range(2))
        assert (step % 3 == 0) == same(cohort.peers[0], kept[0])


def test_the_count_of_steps_is_resumed():
    cohort, loss = Cohort([network(0), network(1)], stages=STAGES, shadows=True), Codistillation(interval=3)
    one_step(cohort, loss, 0)
    twins = [copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), Codistillation(interval=3)]
    twins[2].load_state_dict(loss.state_dict())
    for twin in twins:
        again = copy.deepcopy(cohort)
        one_step(again, twin, 1)
        assert not same(again.peers[2], state(again.peers[0]))
        one_step(again, twin, 2)
        assert same(again.peers[2], state(again.peers[0]))


# One peer in each process


def member(peer, folder, peers=2, interval=2, width=6, **settings):
    """The cohort and the loss of one process: its own network, and frozen ones for the others."""
    numbers = [peer, *(n for n in range(peers) if n != peer)]
    networks = [network(100 * peer + n, width=width if n == 1 else 6) for n in numbers]
    cohort = Cohort(networks, stages=STAGES, frozen=range(1, peers))
    return cohort, Codistillation(
        interval=interval, burn_in=0.0, exchange=str(folder), peer=peer, peers=peers, **settings
    )


def test_peers_learn_from_what_the_others_left(tmp_path):
    """Three processes with different networks, one after the other in this one."""
    members = [member(n, tmp_path / "new", peers=3, width=9) for n in range(3)]
    assert [loss.shadows for _, loss in members] == ["", "", ""]
    terms = [one_step(cohort, loss, step) for step in range(2) for cohort, loss in members]
    assert all((each["distill"] == 0).all() for each in terms), "nobody has heard of anybody"
    assert sorted(os.listdir(tmp_path / "new")) == [f"peer-{n}.safetensors" for n in range(3)]
    left = [state(cohort.peers[0]) for cohort, _ in members]
    # The third wrote last, so it alone has found the files of both others; the first found none.
    assert [loss.arrived.tolist() for _, loss in members] == [[0, 0], [1, 0], [1, 1]]
    assert same(members[2][0].peers[1], left[0])
    assert same(members[2][0].peers[2], left[1])

    x, targets = data(5)
    for cohort, loss in members:
        cohort.eval()
        outputs, (own, *others) = cohort(x), cohort.peers
        came = [peer(x) for peer, there in zip(others, loss.arrived.tolist(), strict=True) if there]
        found = loss(outputs, targets)
        task, distill = slow_codistillation(own(x)[None], [came], targets, 1.0, 1.0)
        torch.testing.assert_close(found["task"], torch.cat([task, torch.zeros(2)]))
        torch.testing.assert_close(found["distill"], torch.cat([distill, torch.zeros(2)]))
        assert (found["distill"][0] > 0) == bool(came)


def test_a_peer_that_dies_stays_as_it_was(tmp_path):
    (here, loss), (there, other) = member(0, tmp_path), member(1, tmp_path)
    for step in range(2):
        one_step(there, other, step)
    last = state(there.peers[0])
    del there, other
    found = [one_step(here, loss, step)["distill"][0] for step in range(8)]
    assert same(here.peers[1], last)
    assert [bool(value) for value in found] == [False, False, *[True] * 6]
    assert (here.peers[1](data()[0]).requires_grad, here.peers[1].training) == (False, False)


@pytest.mark.parametrize("damage", ["empty", "half", "short", "text", "not finite"])
def test_a_damaged_file_is_passed_over(damage, tmp_path):
    (here, loss), (there, other) = member(0, tmp_path, interval=1), member(1, tmp_path, interval=1)
    one_step(there, other, 0)
    one_step(here, loss, 0)
    assert loss.arrived.tolist() == [1]
    before, path = state(here.peers[1]), tmp_path / "peer-1.safetensors"
    one_step(there, other, 1)
    whole = path.read_bytes()
    broken = {name: value * float("nan") if value.is_floating_point() else value for name, value in before.items()}
    damaged = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "short": whole[:-1],
        "text": b"no such file",
        "not finite": safetensors.torch.save(broken),
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match=r"passed over .*peer-1"):
        one_step(here, loss, 1)
    assert same(here.peers[1], before)
    assert loss.arrived.tolist() == [1]
    fresh, late = member(0, tmp_path, interval=1)
    with pytest.warns(UserWarning, match="passed over"):
        one_step(fresh, late, 0)
    assert late.arrived.tolist() == [0], "who never heard of a peer does not learn from it"
    path.write_bytes(whole)
    one_step(here, loss, 2)
    assert same(here.peers[1], state(there.peers[0])), "the next whole file is taken"


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cohort, loss = member(0, tmp_path / "file", interval=1)
    with pytest.warns(UserWarning, match="earlier copy"), pytest.warns(UserWarning, match="passed over"):
        one_step(cohort, loss, 0)


def test_nothing_half_written_is_left(tmp_path):
    cohort, loss = member(0, tmp_path, interval=1)
    for step in range(3):
        one_step(cohort, loss, step)
    assert os.listdir(tmp_path) == ["peer-0.safetensors"]
    assert same(cohort.peers[0], safetensors.torch.load_file(tmp_path / "peer-0.safetensors"))


def test_another_architecture_is_an_error(tmp_path):
    (here, loss), (there, other) = member(0, tmp_path, interval=1), member(1, tmp_path, interval=1, width=9)
    one_step(there, other, 0)
    with pytest.raises(ValueError, match=r"peer-1.safetensors does not fit the frozen peer .* process 1, .* trains"):
        one_step(here, loss, 0)


def test_what_came_is_saved(tmp_path):
    (here, loss), (there, other) = member(0, tmp_path, interval=1), member(1, tmp_path, interval=1)
    one_step(there, other, 0)
    one_step(here, loss, 0)
    fresh_cohort, fresh = member(0, tmp_path, interval=1)
    fresh_cohort.load_state_dict(here.state_dict())
    fresh.load_state_dict(loss.state_dict())
    x, targets = data(7)
    here.eval(), fresh_cohort.eval()
    assert torch.equal(fresh(fresh_cohort(x), targets)["distill"], loss(here(x), targets)["distill"])


OTHER = """
import sys, time, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
warnings.simplefilter("error")
from tests.losses.test_codistillation import member, one_step
folder = Path(sys.argv[2])
cohort, loss = member(1, folder, interval=5)
end, step = time.monotonic() + 60, 0
while time.monotonic() < end:
    terms = one_step(cohort, loss, step % 8)
    step += 1
    if terms["distill"][0].item() > 0:
        (folder / "heard").touch()
"""


def test_two_processes_of_which_one_is_killed(tmp_path):
    """They find each other; the other one is killed as it trains; this one continues to learn from the last copy."""
    arguments = [sys.executable, "-c", OTHER, str(Path(__file__).parents[2]), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    other = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
    cohort, loss = member(0, tmp_path, interval=5)
    terms, end = [], time.monotonic() + 60

    def go_on():
        terms.append({name: term[0].item() for name, term in one_step(cohort, loss, len(terms) % 8).items()})

    try:
        while not ((tmp_path / "heard").exists() and terms[-1]["distill"] > 0):
            assert other.poll() is None, other.stderr.read().decode()
            assert time.monotonic() < end
            go_on()
            time.sleep(0.02)
        assert terms[0]["distill"] == 0
        other.kill()
        other.wait()
    finally:
        other.kill()
        other.wait()
        other.stderr.close()
    left, own = (safetensors.torch.load_file(tmp_path / f"peer-{number}.safetensors") for number in (1, 0))
    for _ in range(40):
        go_on()
    assert same(cohort.peers[1], left), "what the killed process left is whole, and is what this one learns from"
    assert all(each["distill"] > 0 for each in terms[-40:])
    assert terms[-1]["task"] < terms[0]["task"]
    now = safetensors.torch.load_file(tmp_path / "peer-0.safetensors")
    assert not all(torch.equal(value, now[name]) for name, value in own.items()), "it continues to publish"


# What does not fit


def test_cohorts_that_do_not_fit(tmp_path):
    targets = torch.full((3, 4), 0.25)
    with pytest.raises(ValueError, match="shadows=True"):
        Codistillation()(Outputs(torch.zeros(2, 3, 4), frozen=(1,)), targets)
    apart = Codistillation(exchange=str(tmp_path), peers=3)
    for outputs in (
        Outputs(torch.zeros(3, 3, 4), frozen=(1,)),
        Outputs(torch.zeros(2, 3, 4), frozen=(1,)),
        Outputs(torch.zeros(4, 3, 4), frozen=(2, 3), shadows=2),
    ):
        with pytest.raises(ValueError, match=r"frozen=\[1, 2\]\) of 3 networks"):
            apart(outputs, targets)
    for labels in (torch.tensor([0, 1, 2]), torch.zeros(3, 5)):
        with pytest.raises(ValueError, match="soft ones of"):
            Codistillation()(with_shadows(2), labels)


@pytest.mark.parametrize(
    "setting",
    [
        {"weight": -1.0},
        {"temperature": 0.0},
        {"interval": 0},
        {"burn_in": 1.1},
        {"peer": 2, "exchange": "here"},
        {"peer": -1, "exchange": "here"},
    ],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        Codistillation(**setting)
