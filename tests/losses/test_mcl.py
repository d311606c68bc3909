"""MCL against its formulas, anchor by anchor in float64."""

import copy
import pickle

import pytest
import torch

from metamixer.core.types import Outputs, total
from metamixer.losses import MCL
from tests.losses.slow_contrast import cross_entropy, kl, kl_rows, matrix, mean, project, same_gradients, supervised
from tests.oracle import draw

SETTINGS = {"temperature": 2.0, "tau": 0.3, "vcl": 0.2, "soft_vcl": 0.7, "icl": 0.4, "soft_icl": 1.3, "width": 4}


def outputs_of(peers=2, batch=5, classes=3, **changes):
    features = tuple(draw(batch, 3 + peer, seed=10 + peer).requires_grad_() for peer in range(peers))
    logits = draw(peers, batch, classes, scale=2.0).requires_grad_()
    return Outputs(**({"logits": logits, "features": features} | changes))


def targets_of(batch=5, classes=3):
    return draw(batch, classes, seed=1, scale=2.0).softmax(-1)


def made(outputs, **settings):
    torch.manual_seed(0)
    loss = MCL(**(SETTINGS | settings))
    loss.setup(outputs)
    return loss


def slow_mcl(loss, outputs, targets):
    P, T, tau = len(outputs.logits), loss.temperature, loss.tau
    v = [[project(loss.projectors[i], row) for row in outputs.features[i]] for i in range(P)]
    s = [[matrix(v[i], v[j], tau) for j in range(P)] for i in range(P)]
    terms = {name: [] for name in ("task", "vcl", "soft_vcl", "icl", "soft_icl", "distill")}
    for i in range(P):
        others = [j for j in range(P) if j != i]
        terms["task"].append(cross_entropy(outputs.logits[i], targets))
        terms["vcl"].append(loss.vcl * mean(supervised(s[i][i], targets)))
        zero = 0 * terms["vcl"][i]
        terms["soft_vcl"].append(zero + loss.soft_vcl * sum(mean(kl_rows(s[j][j], s[i][i], T)) for j in others))
        terms["icl"].append(zero + loss.icl * sum(mean(supervised(s[i][j], targets)) for j in others))
        terms["soft_icl"].append(zero + loss.soft_icl * sum(mean(kl_rows(s[j][i], s[i][j], T)) for j in others))
        average = [sum(outputs.logits[j, b] for j in range(P)) / P for b in range(len(targets))]
        terms["distill"].append(mean([kl(average[b], outputs.logits[i, b], T) for b in range(len(targets))]))
    return {name: torch.stack(values) for name, values in terms.items()}


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_mcl_is_the_slow_loop(peers):
    outputs, targets = outputs_of(peers, batch=4), targets_of(4)
    loss = made(outputs, logits=True)
    found, wanted = loss(outputs, targets), slow_mcl(loss, outputs, targets)
    assert list(found) == ["task", "vcl", "soft_vcl", "icl", "soft_icl", "distill"]
    leaves = [outputs.logits, *outputs.features, *loss.parameters()]
    for name in found:
        torch.testing.assert_close(found[name], wanted[name])
        for i in range(peers):
            same_gradients(found[name][i], wanted[name][i], leaves)


def test_for_labels_it_is_supcon_with_counted_positives():
    """The official code's form: the mean of log p over the others of the class."""
    outputs = outputs_of(2, batch=6)
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    loss = made(outputs)
    found = loss(outputs, torch.eye(3, dtype=torch.float64)[labels])
    with torch.no_grad():
        v = [torch.stack([project(loss.projectors[i], row) for row in outputs.features[i]]) for i in range(2)]
        for name, keys, weight in (("vcl", v[0], 0.2), ("icl", v[1], 0.4)):
            s = v[0] @ keys.T / 0.3
            anchors = []
            for b in range(6):
                others = [k for k in range(6) if k != b]
                same = [k for k in others if labels[k] == labels[b]]
                log_p = [s[b, k] - s[b, others].exp().sum().log() for k in same]
                anchors.append(sum(log_p) / len(same) if same else torch.zeros((), dtype=torch.float64))
            torch.testing.assert_close(found[name][0], -weight * sum(anchors) / 6)


def test_defaults_are_those_of_the_notes():
    loss = MCL()
    assert (loss.temperature, loss.tau, loss.width, loss.logits) == (3.0, 0.1, 128, False)
    assert (loss.vcl, loss.soft_vcl, loss.icl, loss.soft_icl) == (0.1, 1.0, 0.1, 1.0)
    outputs = outputs_of()
    loss.setup(outputs)
    assert "distill" not in loss(outputs, targets_of())


def test_what_is_held_fixed():
    """ICL pulls at both peers. SoftVCL's teacher is held fixed, and the labels teach each peer alone."""
    outputs, targets = outputs_of(2), targets_of()
    loss = made(outputs, logits=True)
    terms = loss(outputs, targets)

    def reached(name):
        grads = torch.autograd.grad(terms[name][0], outputs.features, retain_graph=True, allow_unused=True)
        return [grad is not None and bool(grad.any()) for grad in grads]

    assert reached("vcl") == reached("soft_vcl") == [True, False]
    assert reached("icl") == reached("soft_icl") == [True, True]
    (grad,) = torch.autograd.grad(terms["distill"][0], outputs.logits, retain_graph=True)
    assert grad[0].any()
    assert not grad[1].any()


def test_a_frozen_peer_is_compared_with_and_learns_nothing():
    targets = targets_of()
    everyone = outputs_of(3)
    loss = made(everyone, logits=True)
    frozen = outputs_of(3, frozen=(1,))
    found, wanted = loss(frozen, targets), loss(everyone, targets)
    for name, term in found.items():
        assert term[1] == 0
        torch.testing.assert_close(term[[0, 2]], wanted[name][[0, 2]])
    total(found).backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in loss.projectors[1].parameters())


def test_identical_peers_with_one_projector_agree():
    """What is left between them is the contrast: ICL is VCL, and the soft terms are 0."""
    outputs = Outputs(draw(1, 5, 3).expand(2, -1, -1), features=(draw(5, 4),) * 2)
    loss = made(outputs, vcl=0.4)
    loss.projectors[1].load_state_dict(loss.projectors[0].state_dict())
    terms = loss(outputs, targets_of())
    torch.testing.assert_close(terms["icl"], terms["vcl"])
    for name in ("soft_vcl", "soft_icl"):
        torch.testing.assert_close(terms[name], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_classes_that_come_together_lower_the_loss():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    targets = torch.eye(3)[labels]
    outputs = Outputs(torch.zeros(2, 6, 3), features=(draw(6, 8).float(), draw(6, 8, seed=3).float()))
    loss = MCL(vcl=1.0, soft_vcl=0.0, icl=1.0, soft_icl=0.0)
    loss.setup(outputs)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.2)
    first = total(loss(outputs, targets))
    for _ in range(60):
        optimizer.zero_grad()
        total(loss(outputs, targets)).backward()
        optimizer.step()
    terms = loss(outputs, targets)
    assert total(terms) < first
    assert (terms["icl"] < 0.1).all()


def test_parts_are_made_once_and_travel():
    outputs, targets = outputs_of(2), targets_of()
    loss = made(outputs)
    before = list(loss.parameters())
    loss.setup(outputs_of(2, batch=2))
    assert all(one is other for one, other in zip(before, loss.parameters(), strict=True))
    assert len(before) == 2 * 4
    assert set(loss.state_dict()) == {name for name, _ in loss.named_parameters()}
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        twin.setup(outputs)
        for name, term in loss(outputs, targets).items():
            assert torch.equal(twin(outputs, targets)[name], term)
    loss.setup(outputs_of(3))
    assert len(loss.projectors) == 3


def test_bf16_autocast():
    g = torch.Generator().manual_seed(0)
    outputs = Outputs(torch.randn(2, 16, 4, generator=g), features=tuple(torch.randn(2, 16, 8, generator=g)))
    loss = MCL()
    loss.setup(outputs)
    targets = torch.eye(4)[torch.arange(16) % 4]
    exact = loss(outputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(outputs, targets)
    for name, term in found.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, exact[name], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 0.0}, {"tau": -0.1}, {"width": 0}, {"vcl": -1.0}, {"soft_icl": float("nan")}],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        MCL(**setting)


def test_what_does_not_fit():
    outputs, targets = outputs_of(2), targets_of()
    with pytest.raises(ValueError, match=r"parts for 0 peers, there are 2: setup\(outputs\)"):
        MCL()(outputs, targets)
    with pytest.raises(ValueError, match="compares features"):
        MCL().setup(Outputs(outputs.logits))
    with pytest.raises(ValueError, match="soft ones of"):
        made(outputs)(outputs, torch.tensor([0, 1, 2, 0, 1]))
