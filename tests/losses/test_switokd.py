"""SwitOKD against the paper's switching rule and the losses of both modes, in float64, with plain Python decisions."""

import functools
import math

import pytest
import torch

from metamixer.core.types import Outputs, total
from metamixer.losses.switokd import SwitOKD
from tests import oracle
from tests.oracle import softmax

FORMS = {"pair": (1, 1), "1t2s": (1, 2), "2t1s": (2, 1)}


draw = functools.partial(oracle.draw, scale=2.0)


def distance(a, b):
    """The mean over the batch of the sum over the classes of |a - b|, as a number."""
    rows = [sum(abs(x - y) for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)]
    return sum(rows) / len(rows)


def is_expert(student, teacher, targets):
    p_s, p_t = ([softmax(row).tolist() for row in logits.detach()] for logits in (student, teacher))
    gap, d_s, d_t = distance(p_s, p_t), distance(p_s, targets.tolist()), distance(p_t, targets.tolist())
    return gap > d_s - math.exp(-d_t / (d_s + d_t)) * d_t and d_t < d_s


def cross_entropy(logits, targets):
    return sum(-(t * softmax(row).log()).sum() for row, t in zip(logits, targets, strict=True)) / len(logits)


def kl(teacher, student):
    rows = [(softmax(t), softmax(s)) for t, s in zip(teacher.detach(), student, strict=True)]
    return sum((p * (p.log() - q.log())).sum() for p, q in rows) / len(rows)


def slow_switokd(logits, targets, teachers):
    """The losses of every peer, written as the paper distinguishes the modes: ``(task, distill, experts)``."""
    peers = len(logits)
    students = range(teachers, peers)
    expert = {(t, s): is_expert(logits[s], logits[t], targets) for t in range(teachers) for s in students}
    task, distill = [], []
    for t in range(teachers):
        ce = kls = 0 * logits.sum()
        if not all(expert[t, s] for s in students):
            ce = cross_entropy(logits[t], targets)
            for other in range(teachers):
                if other != t:
                    kls = kls + kl(logits[other], logits[t])
        for s in students:
            if not expert[t, s]:
                kls = kls + kl(logits[s], logits[t])
        task.append(ce)
        distill.append(kls)
    for s in students:
        task.append(cross_entropy(logits[s], targets))
        distill.append(sum(kl(logits[j], logits[s]) for j in range(peers) if j != s))
    return torch.stack(task), torch.stack(distill), expert


@pytest.mark.parametrize("form", FORMS)
def test_switokd_is_the_slow_loop_in_both_modes(form):
    teachers, students = FORMS[form]
    seen = set()
    for seed in range(12):
        logits = draw(teachers + students, 3, 4, seed=seed).requires_grad_()
        targets = draw(3, 4, seed=50 + seed, scale=4.0).softmax(-1)
        loss = SwitOKD(form)
        terms = loss(Outputs(logits), targets)
        task, distill, expert = slow_switokd(logits, targets, teachers)
        torch.testing.assert_close(terms["task"], task)
        torch.testing.assert_close(terms["distill"], distill)
        peers = range(teachers + students)
        for peer in peers:
            pairs = [number for pair, number in expert.items() if peer in pair]
            assert loss.watched["expert"][peer] == sum(pairs) / len(pairs)
            found = torch.autograd.grad(terms["task"][peer] + terms["distill"][peer], logits, retain_graph=True)[0]
            wanted = torch.autograd.grad(task[peer] + distill[peer], logits, retain_graph=True)[0]
            torch.testing.assert_close(found, wanted)
            assert not found[[j for j in peers if j != peer]].any()
        seen.add(tuple(expert.values()))
    assert len(seen) > 1, "the draws show one mode only"
    assert {any(modes) for modes in seen} == {True, False}


def test_a_paused_teacher_learns_nothing_and_teaches_on():
    ahead, behind = [[3.0, 2.6, -9.0]], [[0.0, -9.0, 1.4]]
    logits, targets = torch.tensor([ahead, behind], requires_grad=True), torch.tensor([[1.0, 0.0, 0.0]])
    loss = SwitOKD()
    terms = loss(Outputs(logits), targets)
    assert loss.watched["expert"].tolist() == [1, 1]
    assert terms["task"][0] == terms["distill"][0] == 0
    assert terms["distill"][1] > 0.1
    total(terms).backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].any()
    swapped = loss(Outputs(logits[[1, 0]]), targets)  # a teacher that is behind is never paused
    assert loss.watched["expert"].tolist() == [0, 0]
    assert (swapped["task"] > 0).all()
    assert (swapped["distill"] > 0).all()


def test_two_classes_are_never_in_expert_mode():
    """Then G = |d_s - d_t| for one-hot labels, which is never above delta: with one wrong class no gap is too wide."""
    loss = SwitOKD("pair")
    for seed in range(20):
        loss(Outputs(draw(2, 1, 2, seed=seed)), torch.eye(2, dtype=torch.float64)[:1])
        assert not loss.watched["expert"].any()


def test_auto_is_one_teacher_with_all_others():
    targets = draw(3, 4, seed=1).softmax(-1)
    for peers, form in ((2, "pair"), (3, "1t2s")):
        for seed in range(5):
            outputs = Outputs(draw(peers, 3, 4, seed=seed))
            found, wanted = SwitOKD()(outputs, targets), SwitOKD(form)(outputs, targets)
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert SwitOKD()(Outputs(draw(5, 3, 4)), targets)["task"].shape == (5,)


def test_who_is_deployed():
    assert list(SwitOKD().deployable(2)) == [1]
    assert list(SwitOKD("pair").deployable(2)) == [1]
    assert list(SwitOKD("1t2s").deployable(3)) == [1, 2]
    assert list(SwitOKD("2t1s").deployable(3)) == [2]


def test_the_temperature_is_in_the_rule_and_in_the_divergence():
    logits, targets = draw(2, 3, 4), draw(3, 4, seed=1).softmax(-1)
    cool, warm = SwitOKD(), SwitOKD(temperature=2.0, weight=0.5)
    halved, whole = cool(Outputs(logits / 2), targets), warm(Outputs(logits), targets)
    assert torch.equal(cool.watched["expert"], warm.watched["expert"])
    torch.testing.assert_close(whole["distill"], 0.5 * 2.0**2 * halved["distill"])


def test_nothing_is_read_on_the_host():
    """Tensors on the meta device hold no numbers: whoever asks for one, which stops a GPU, fails."""
    loss = SwitOKD()
    terms = loss(Outputs(torch.zeros(3, 4, 5, device="meta")), torch.zeros(4, 5, device="meta"))
    assert all(term.shape == (3,) for term in terms.values())
    assert loss.watched["expert"].shape == (3,)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,)])
def test_a_frozen_peer_teaches_only(frozen):
    logits, targets = draw(3, 3, 4).requires_grad_(), draw(3, 4, seed=1).softmax(-1)
    found, free = (SwitOKD()(Outputs(logits, frozen=who), targets) for who in (frozen, ()))
    for name, term in found.items():
        keep = torch.tensor([peer not in frozen for peer in range(3)])
        torch.testing.assert_close(term, torch.where(keep, free[name], 0.0))
    total(found).backward()
    assert not logits.grad[list(frozen)].any()


def test_peers_that_know_everything():
    """0 / 0 in the rule: nobody is ahead."""
    logits = torch.zeros(2, 3, 4)
    logits[:, :, 0] = 1e4
    loss = SwitOKD()
    terms = loss(Outputs(logits.requires_grad_()), torch.eye(4)[[0, 0, 0]])
    assert loss.watched["expert"].tolist() == [0, 0]
    total(terms).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("form", "peers"), [("pair", 3), ("pair", 1), ("1t2s", 2), ("2t1s", 4), ("auto", 1)], ids=str)
def test_forms_that_do_not_fit(form, peers):
    with pytest.raises(ValueError, match=rf"form='{form}' does not fit {peers} peers: expected 'pair' for 2"):
        SwitOKD(form)(Outputs(draw(peers, 3, 4)), draw(3, 4).softmax(-1))


@pytest.mark.parametrize("setting", [{"form": "3t"}, {"temperature": 0.0}, {"weight": -1.0}], ids=str)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        SwitOKD(**setting)
