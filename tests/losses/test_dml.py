"""DML against Eq. 8 and 9 of the paper, peer by peer and sample by sample in float64, with teachers held fixed."""

import functools
import math

import pytest
import torch

from metamixer.core.types import Outputs, total
from metamixer.losses import DML
from tests import oracle
from tests.oracle import log_softmax

draw = functools.partial(oracle.draw, scale=3.0)


def slow_dml(logits, targets, temperature, weight):
    """Per peer: the cross-entropy, and the weighted mean over the other peers of T^2 KL(p_j || p_i)."""
    peers, batch, classes = logits.shape
    task, distill = [], []
    for i in range(peers):
        cross_entropy = divergence = 0.0
        for b in range(batch):
            log_p = log_softmax(logits[i, b])
            student = log_softmax(logits[i, b] / temperature)
            for c in range(classes):
                cross_entropy = cross_entropy - targets[b, c] * log_p[c] / batch
            for j in range(peers):
                if j == i:
                    continue
                teacher = log_softmax(logits[j, b].detach() / temperature)
                for c in range(classes):
                    kl = teacher[c].exp() * (teacher[c] - student[c])
                    divergence = divergence + weight * temperature**2 * kl / (peers - 1) / batch
        task.append(cross_entropy)
        distill.append(divergence + 0 * cross_entropy)
    return torch.stack(task), torch.stack(distill)


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 1.0), (4.0, 1.0), (2.0, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("peers", [1, 2, 3, 4])
def test_dml_is_the_slow_loop(peers, temperature, weight):
    logits, targets = draw(peers, 3, 4).requires_grad_(), draw(3, 4, seed=1).softmax(-1)
    terms = DML(temperature, weight)(Outputs(logits), targets)
    task, distill = slow_dml(logits, targets, temperature, weight)
    assert list(terms) == ["task", "distill"]
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["distill"], distill)
    for i in range(peers):  # each peer by itself, so that nothing that crosses can cancel
        found = torch.autograd.grad(terms["task"][i] + terms["distill"][i], logits, retain_graph=True)[0]
        wanted = torch.autograd.grad(task[i] + distill[i], logits, retain_graph=True)[0]
        torch.testing.assert_close(found, wanted)
        assert not found[[j for j in range(peers) if j != i]].any()


def test_defaults_are_the_papers():
    logits, targets = draw(2, 3, 4), draw(3, 4, seed=1).softmax(-1)
    torch.testing.assert_close(DML()(Outputs(logits), targets)["distill"], slow_dml(logits, targets, 1.0, 1.0)[1])


@pytest.mark.parametrize("progress", [None, 0.0, 0.1, 0.2, 0.9])
def test_ramp(progress):
    logits, targets = draw(2, 3, 4), draw(3, 4, seed=1).softmax(-1)
    full = DML(weight=2.0)(Outputs(logits), targets)
    ramped = DML(weight=2.0, ramp_up=0.2)(Outputs(logits), targets, progress=progress)
    share = 1.0 if progress is None else math.exp(-5 * (1 - min(progress / 0.2, 1)) ** 2)
    torch.testing.assert_close(ramped["distill"], share * full["distill"])
    torch.testing.assert_close(ramped["task"], full["task"])


@pytest.mark.parametrize("peers", [2, 3])
def test_identical_peers_have_nothing_to_teach(peers):
    logits = draw(1, 3, 4).expand(peers, -1, -1).clone().requires_grad_()
    terms = DML(temperature=3.0)(Outputs(logits), torch.full((3, 4), 0.25, dtype=torch.float64))
    assert terms["distill"].tolist() == [0.0] * peers
    assert torch.autograd.grad(terms["distill"].sum(), logits)[0].abs().max() < 1e-15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    logits, targets = draw(2, 8, 4).to(dtype).requires_grad_(), draw(8, 4, seed=1).softmax(-1).float()
    terms = DML(temperature=4.0)(Outputs(logits), targets)
    task, distill = slow_dml(logits.double(), targets.double(), 4.0, 1.0)
    torch.testing.assert_close(terms["task"].double(), task, rtol=0.02, atol=0.02)
    torch.testing.assert_close(terms["distill"].double(), distill, rtol=0.02, atol=0.02)
    total(terms).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_extreme_logits_stay_finite(temperature, dtype):
    """Two peers that are sure of different classes: KL is about 1e4 / T, T^2 times that 8e4 for T = 8."""
    logits = torch.zeros(2, 3, 5, dtype=dtype)
    logits[0, :, 0] = logits[1, :, 1] = 1e4
    logits[1, :, 2] = -1e4
    logits.requires_grad_()
    targets = torch.eye(5)[torch.tensor([0, 1, 4])]
    terms = DML(temperature=temperature)(Outputs(logits), targets)
    total(terms).backward()
    assert logits.grad.isfinite().all()
    assert all(term.isfinite().all() for term in terms.values())
    torch.testing.assert_close(
        terms["distill"].double(), torch.full((2,), 1e4 * temperature, dtype=torch.float64), rtol=0.01, atol=0
    )


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 0.0}, {"temperature": -1.0}, {"weight": -0.1}, {"weight": float("nan")}, {"ramp_up": 1.5}],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        DML(**setting)


def test_shapes_that_do_not_fit():
    for targets in (torch.tensor([0, 1, 2]), torch.zeros(3, 5), torch.zeros(1, 4)):
        with pytest.raises(ValueError, match="soft ones of"):
            DML()(Outputs(torch.zeros(2, 3, 4)), targets)
