"""The parts of the losses, number by number in float64 as the papers write them."""

import functools
import math

import pytest
import torch

from metamixer.losses.functional import check_targets, divergence, mutual_divergence, ramp_up, soft_cross_entropy
from tests import oracle

draw = functools.partial(oracle.draw, scale=3.0)


def softmax(z, temperature=1.0):
    """One row of logits -> probabilities, in Python's floats."""
    shifted = [math.exp((x - max(z)) / temperature) for x in z]
    return [x / sum(shifted) for x in shifted]


def slow_kl(teacher, student, temperature):
    """The mean over the batch of T^2 sum_c p_c (log p_c - log q_c)."""
    rows = []
    for t, s in zip(teacher.tolist(), student.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        rows.append(temperature**2 * sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True)))
    return sum(rows) / len(rows)


def slow_cross_entropy(logits, targets):
    rows = [
        -sum(t * math.log(p) for t, p in zip(target, softmax(z), strict=True))
        for z, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    return sum(rows) / len(rows)


def test_soft_cross_entropy():
    logits, targets = draw(3, 4, 5).requires_grad_(), draw(4, 5, seed=1).softmax(-1)
    found = soft_cross_entropy(logits, targets)
    assert found.tolist() == pytest.approx([slow_cross_entropy(peer, targets) for peer in logits])
    (grad,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(grad, (logits.softmax(-1) - targets) / 4)  # the textbook's gradient


@pytest.mark.parametrize("temperature", [1.0, 4.0, 0.5])
def test_divergence(temperature):
    teacher, student = draw(4, 5).requires_grad_(), draw(4, 5, seed=1).requires_grad_()
    found = divergence(teacher, student, temperature)
    assert found.shape == ()
    assert found.item() == pytest.approx(slow_kl(teacher, student, temperature))
    found.backward()
    assert teacher.grad is None
    p, q = ((z.detach() / temperature).softmax(-1) for z in (teacher, student))
    torch.testing.assert_close(student.grad, temperature * (q - p) / 4)


def test_divergence_of_stacked_peers():
    teacher, student = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
    found = divergence(teacher, student, 2.0)
    assert found.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert found[i, j].item() == pytest.approx(slow_kl(teacher[i, j], student[i, j], 2.0))


def test_divergence_is_of_the_teacher_from_the_student():
    """KL is not symmetric: a sharp teacher against a flat student costs log C - H(p), not the reverse."""
    sharp, flat = torch.tensor([[8.0, 0.0, 0.0, 0.0]], dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    p = softmax([8.0, 0.0, 0.0, 0.0])
    assert float(divergence(sharp, flat, 1.0)) == pytest.approx(math.log(4) + sum(x * math.log(x) for x in p))
    assert float(divergence(sharp, flat, 1.0)) != pytest.approx(float(divergence(flat, sharp, 1.0)), rel=0.5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("peers", [1, 2, 3, 4])
def test_mutual_divergence(peers, temperature):
    logits = draw(peers, 4, 5).requires_grad_()
    found = mutual_divergence(logits, temperature)
    assert found.shape == (peers,)
    for i in range(peers):
        others = [slow_kl(logits[j], logits[i], temperature) for j in range(peers) if j != i]
        assert found[i].item() == pytest.approx(sum(others) / max(1, len(others)))


def test_ramp_up():
    """exp(-5 (1 - t/80)^2) for the first 80 of 300 epochs."""
    length = 80 / 300
    for epoch in (0, 1, 40, 79, 80, 81, 300):
        wanted = math.exp(-5 * (1 - min(epoch, 80) / 80) ** 2)
        assert ramp_up(epoch / 300, length) == pytest.approx(wanted)
    assert ramp_up(None, length) == ramp_up(0.0, 0.0) == 1.0


@pytest.mark.parametrize(
    "targets",
    [torch.tensor([0, 1, 2]), torch.zeros(3, 4), torch.zeros(3, 5, dtype=torch.long), torch.zeros(2, 3, 5)],
    ids=["indices", "classes", "integers", "per peer"],
)
def test_targets_have_to_be_soft(targets):
    check_targets(torch.zeros(2, 3, 5), torch.full((3, 5), 0.2))
    with pytest.raises(ValueError, match=r"soft ones of \(3, 5\).*plan\.targets"):
        check_targets(torch.zeros(2, 3, 5), targets)


@pytest.mark.parametrize(
    "row", [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1.5, -0.5, 0, 0, 0]], ids=["two", "none", "below 0"]
)
def test_targets_have_to_be_distributions(row):
    targets = torch.full((3, 5), 0.2)
    targets[1] = torch.tensor(row)
    with pytest.raises(ValueError, match=r"row 1 of the targets sums to .* accepted: a distribution in each row"):
        check_targets(torch.zeros(2, 3, 5), targets)


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 0, 5), (2, 5), (2, 3, 5, 8, 8)], ids=str)
def test_logits_of_one_class_no_image_or_every_pixel(shape):
    with pytest.raises(ValueError, match=r"accepted: \(peers, B, classes\), at least one image and two classes"):
        check_targets(torch.zeros(shape), torch.ones(shape[1:]))
