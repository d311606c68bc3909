"""The formulas of MCL and L-MCL, anchor by anchor and key by key, with nothing but dot products."""

import torch


def log_softmax(values):
    """Of a list of 0-d tensors."""
    top = max(value.item() for value in values)
    norm = top + sum((value - top).exp() for value in values).log()
    return [value - norm for value in values]


def unit(vector):
    return vector / (vector * vector).sum().sqrt()


def project(projector, vector):
    """Linear, ReLU, Linear, length 1, for one sample."""
    first, _, second = projector
    hidden = (first.weight @ vector + first.bias).clamp(min=0)
    return unit(second.weight @ hidden + second.bias)


def matrix(anchors, keys, tau):
    """Two lists of vectors -> a list of rows of similarities."""
    return [[(anchor @ key) / tau for key in keys] for anchor in anchors]


def cross_entropy(logits, targets):
    """The mean over the samples."""
    rows = [log_softmax(list(row)) for row in logits]
    log_p = torch.stack([torch.stack(row) for row in rows])
    return -(targets * log_p).sum() / len(rows)


def supervised(rows, targets):
    """SupCon without the sample itself, a number for each anchor; positives count as their targets agree."""
    found = []
    for b, row in enumerate(rows):
        others = [k for k in range(len(row)) if k != b]
        log_p = dict(zip(others, log_softmax([row[k] for k in others]), strict=True))
        agree = {k: sum(targets[b, c] * targets[k, c] for c in range(targets.shape[1])) for k in others}
        whole = sum(agree.values())
        found.append(0 * sum(row) - (sum(agree[k] * log_p[k] for k in others) / whole if whole > 0 else 0))
    return found


def kl(teacher, student, temperature):
    """T^2 KL(teacher || student) of two lists of numbers; the teacher is held fixed."""
    p = log_softmax([value.detach() / temperature for value in teacher])
    q = log_softmax([value / temperature for value in student])
    return temperature**2 * sum(a.exp() * (a - b) for a, b in zip(p, q, strict=True))


def kl_rows(teacher, student, temperature):
    return [kl(a, b, temperature) for a, b in zip(teacher, student, strict=True)]


def mean(values):
    return sum(values) / len(values)


def same_gradients(found, wanted, leaves):
    """The gradients of two numbers for all leaves, those that get none included."""
    for one, other, leaf in zip(
        torch.autograd.grad(found, leaves, retain_graph=True, allow_unused=True),
        torch.autograd.grad(wanted, leaves, retain_graph=True, allow_unused=True),
        leaves,
        strict=True,
    ):
        one, other = (torch.zeros_like(leaf) if grad is None else grad for grad in (one, other))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
