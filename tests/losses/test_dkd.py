"""DKD against the paper's definitions, class by class in float64: TCKD, NCKD, and how they make up KL."""

import functools

import pytest
import torch

from metamixer.core.types import Outputs, total
from metamixer.losses.dkd import DKD
from metamixer.losses.kd import KD
from tests import oracle
from tests.oracle import softmax

draw = functools.partial(oracle.draw, scale=3.0)


def slow_dkd(logits, targets, frozen, temperature):
    """Per peer: CE, T^2 TCKD and T^2 NCKD, zeros for the teachers."""
    peers, batch, classes = logits.shape
    rows = []
    for i in range(peers):
        task = tckd = nckd = 0 * logits.sum()
        for b in range(batch):
            if i in frozen:
                continue
            label = max(range(classes), key=lambda c: (targets[b, c].item(), -c))
            p = sum(softmax(logits[t, b].detach() / temperature) for t in frozen) / len(frozen)
            q = softmax(logits[i, b] / temperature)
            for c in range(classes):
                task = task - targets[b, c] * softmax(logits[i, b])[c].log() / batch
            rest_p, rest_q = (sum(x[c] for c in range(classes) if c != label) for x in (p, q))
            two = p[label] * (p[label] / q[label]).log() + rest_p * (rest_p / rest_q).log()
            tckd = tckd + temperature**2 * two / batch
            for c in range(classes):
                if c != label:
                    own, other = p[c] / rest_p, q[c] / rest_q
                    nckd = nckd + temperature**2 * own * (own / other).log() / batch
        rows.append(torch.stack((task, tckd, nckd)))
    return torch.stack(rows, 1)


def soft_targets():
    targets = draw(4, 5, seed=1).softmax(-1)
    targets[1] = torch.eye(5, dtype=torch.float64)[3]
    targets[2] = torch.tensor([0.1, 0.4, 0.0, 0.4, 0.1])  # a tie: the first of them
    return targets


@pytest.mark.parametrize(("temperature", "alpha", "beta"), [(4.0, 1.0, 8.0), (1.0, 0.0, 2.0), (2.0, 0.5, 0.0)])
@pytest.mark.parametrize(("peers", "frozen"), [(2, (1,)), (2, (0,)), (3, (1,)), (4, (0, 2))], ids=str)
def test_dkd_is_the_slow_loop(peers, frozen, temperature, alpha, beta):
    logits, targets = draw(peers, 4, 5).requires_grad_(), soft_targets()
    terms = DKD(temperature, alpha, beta)(Outputs(logits, frozen=frozen), targets)
    task, tckd, nckd = slow_dkd(logits, targets, frozen, temperature)
    wanted = {"task": task, "distill_target": alpha * tckd, "distill_others": beta * nckd}
    assert list(terms) == list(wanted)
    for name, term in terms.items():
        torch.testing.assert_close(term, wanted[name])
        for i in range(peers):
            if i not in frozen:
                found = torch.autograd.grad(term[i], logits, retain_graph=True)[0]
                torch.testing.assert_close(found, torch.autograd.grad(wanted[name][i], logits, retain_graph=True)[0])
                assert not found[[j for j in range(peers) if j != i]].any()


def test_defaults_are_the_official_codes():
    logits, targets = draw(2, 4, 5), soft_targets()
    terms = DKD()(Outputs(logits, frozen=(1,)), targets)
    task, tckd, nckd = slow_dkd(logits, targets, (1,), 4.0)
    torch.testing.assert_close(torch.stack(list(terms.values())), torch.stack((task, tckd, 8 * nckd)))


def test_both_parts_make_up_the_divergence():
    """Eq. 7 of the paper: KL = TCKD + (1 - p_teacher[target]) NCKD, for every sample."""
    for seed in range(5):
        logits = draw(2, 1, 6, seed=seed)
        outputs, targets = Outputs(logits, frozen=(1,)), torch.eye(6, dtype=torch.float64)[2:3]
        terms = DKD(3.0, 1.0, 1.0)(outputs, targets)
        rest = 1 - (logits[1, 0] / 3).softmax(-1)[2]
        whole = KD(3.0, alpha=1.0)(outputs, targets)["distill"]
        torch.testing.assert_close(terms["distill_target"] + rest * terms["distill_others"], whole)


def test_what_the_others_ignore():
    """The logit of the target is nothing to the others."""
    logits, targets = draw(2, 3, 5), torch.eye(5, dtype=torch.float64)[:3]
    before = DKD()(Outputs(logits, frozen=(1,)), targets)
    moved = logits.clone()
    moved[0] += 7 * targets
    after = DKD()(Outputs(moved, frozen=(1,)), targets)
    torch.testing.assert_close(after["distill_others"], before["distill_others"])
    assert (after["distill_target"] - before["distill_target"]).abs()[0] > 0.1


def test_two_classes_leave_nothing_among_the_others():
    terms = DKD()(Outputs(draw(2, 3, 2), frozen=(1,)), torch.eye(2, dtype=torch.float64)[[0, 1, 1]])
    assert terms["distill_others"].tolist() == [0, 0]
    assert terms["distill_target"][0] > 0


@pytest.mark.parametrize(
    ("progress", "share"), [(None, 1.0), (0.0, 0.0), (0.05, 0.25), (0.2, 1.0), (0.9, 1.0)], ids=str
)
def test_warm_up_is_linear(progress, share):
    outputs, targets = Outputs(draw(2, 4, 5), frozen=(1,)), soft_targets()
    full = DKD()(outputs, targets)
    for given in (progress, None if progress is None else torch.tensor(progress, dtype=torch.float64)):
        found = DKD(warm_up=0.2)(outputs, targets, progress=given)
        torch.testing.assert_close(found["task"], full["task"])
        for name in ("distill_target", "distill_others"):
            torch.testing.assert_close(found[name], share * full[name])
    assert DKD(warm_up=0.0)(outputs, targets, progress=0.0)["distill_target"][0] > 0


def test_networks_that_are_very_sure_stay_apart():
    """A target pushed away by a constant of 1000 would come back at such logits."""
    logits = torch.zeros(2, 2, 4)
    logits[0, :, 0] = 2e4
    logits[1, 0, 0] = logits[1, 1, 1] = 2e4
    logits.requires_grad_()
    terms = DKD(temperature=1.0)(Outputs(logits, frozen=(1,)), torch.eye(4)[[0, 0]])
    total(terms).backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert logits.grad.isfinite().all()
    # Of the first sample the others are three equal ones for both; of the second the teacher has but one.
    assert terms["distill_others"][0].item() == pytest.approx(8 * torch.tensor(3.0).log().item() / 2)


def test_without_a_teacher():
    with pytest.raises(ValueError, match=r"DKD.*peers\.1\.frozen=true peers\.1\.weights=teacher\.safetensors"):
        DKD()(Outputs(draw(2, 4, 5)), soft_targets())


@pytest.mark.parametrize("setting", [{"temperature": 0.0}, {"alpha": -1.0}, {"beta": -1.0}, {"warm_up": 1.5}], ids=str)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        DKD(**setting)
