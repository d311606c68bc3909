"""L-MCL against its formulas in float64: the exits layer by layer, the contrast anchor by anchor."""

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from metamixer.core.types import Outputs, total
from metamixer.losses import LMCL
from tests.losses.slow_contrast import (
    cross_entropy,
    kl,
    kl_rows,
    matrix,
    mean,
    project,
    same_gradients,
    supervised,
    unit,
)
from tests.oracle import draw

SETTINGS = {"temperature": 2.0, "tau": 0.3, "vcl": 0.2, "soft_vcl": 0.7, "icl": 0.4, "soft_icl": 1.3, "width": 4}
SHAPES = (((2, 4, 4), (3, 2, 2), (4, 1, 1)), ((3, 6, 5), (4, 3, 3), (2, 2, 1)), ((2, 3, 3), (2, 2, 2), (3, 1, 1)))


def outputs_of(peers=2, stages=3, batch=4, **changes):
    maps = tuple(
        tuple(draw(batch, *shape, seed=10 * peer + k).requires_grad_() for k, shape in enumerate(shapes[-stages:]))
        for peer, shapes in enumerate(SHAPES[:peers])
    )
    features = tuple(draw(batch, 3 + peer, seed=90 + peer).requires_grad_() for peer in range(peers))
    logits = draw(peers, batch, 3, scale=2.0).requires_grad_()
    return Outputs(**({"logits": logits, "stages": maps, "features": features} | changes))


def targets_of(batch=4):
    return draw(batch, 3, seed=1, scale=2.0).softmax(-1)


def made(outputs, **settings):
    torch.manual_seed(0)
    loss = LMCL(**(SETTINGS | settings))
    loss.setup(outputs)
    return loss


def leaves_of(loss, outputs):
    return [outputs.logits, *outputs.features, *(each for own in outputs.stages for each in own), *loss.parameters()]


def refine(steps, x):
    """Convolution of stride 2, normalisation by this batch's own statistics, ReLU; then the mean over all places."""
    for n in range(0, len(steps), 3):
        conv, norm = steps[n], steps[n + 1]
        x = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
        channels = []
        for c in range(x.shape[1]):
            own = x[:, c]
            centred = own - own.mean()
            channels.append(norm.weight[c] * centred / (centred.square().mean() + norm.eps).sqrt() + norm.bias[c])
        x = torch.stack(channels, 1).clamp(min=0)
    return torch.stack([torch.stack([each.mean() for each in sample]) for sample in x])


def slow_lmcl(loss, outputs, targets):
    P, B, T = len(outputs.logits), len(targets), loss.temperature
    K = min(loss.stages, len(outputs.stages[0]))
    f, aggregated, exits = [], [], []
    for p in range(P):
        parts, maps = loss.exits[p], outputs.stages[p][-K:]
        own = [refine(parts.refine[k], maps[k]) for k in range(K - 1)]
        logits = [own[k] @ parts.classify[k].weight.T + parts.classify[k].bias for k in range(K - 1)]
        f.append([*own, outputs.features[p]])
        rows = []
        for b in range(B):
            first, _, second = parts.attend
            hidden = (first.weight @ torch.cat([each[b] for each in f[p]]) + first.bias).clamp(min=0)
            score = (second.weight @ hidden + second.bias).exp()
            every = [*(each[b] for each in logits), outputs.logits[p, b]]
            rows.append(sum(score[k] / score.sum() * every[k] for k in range(K)))
        aggregated.append(torch.stack(rows))
        exits.append(sum(cross_entropy(each, targets) for each in [*logits, aggregated[p]]))
    v = [[[project(loss.projectors[p * K + k], row) for row in f[p][k]] for k in range(K)] for p in range(P)]

    def trusted(p, k, row):
        linear = loss.trust[p * K + k]
        return unit(linear.weight @ row.detach() + linear.bias)

    u = [[[trusted(p, k, row) for row in f[p][k]] for k in range(K)] for p in range(P)]
    names = ("task", "exits", "distill", "vcl", "soft_vcl", "icl", "soft_icl", "weighting")
    terms = {name: [] for name in names}
    for i in range(P):
        terms["task"].append(cross_entropy(outputs.logits[i], targets))
        terms["exits"].append(exits[i])
        terms["distill"].append(
            sum(mean([kl(aggregated[j][b], outputs.logits[i, b], T) for b in range(B)]) for j in range(P))
        )
        sums = dict.fromkeys(names[3:], 0 * exits[i])
        for j in range(P):
            if j == i:
                continue
            weights, wholes = [], []
            for k in range(K):
                own = matrix(v[i][k], v[i][k], loss.tau)
                for z in range(K):
                    across = matrix(v[i][k], v[j][z], loss.tau)
                    back = matrix(v[j][z], v[i][k], loss.tau)
                    theirs = matrix(v[j][z], v[j][z], loss.tau)
                    found = {
                        "vcl": supervised(own, targets),
                        "soft_vcl": kl_rows(theirs, own, T),
                        "icl": supervised(across, targets),
                        "soft_icl": kl_rows(back, across, T),
                    }
                    for b in range(B):
                        w = 1 / (1 + (-(u[i][k][b] @ u[j][z][b])).exp())
                        weights.append(w)
                        wholes.append(sum(SETTINGS[name] * found[name][b].detach() for name in found))
                        for name in found:
                            sums[name] = sums[name] + 2 * w.detach() * SETTINGS[name] * found[name][b] / B
            average = sum(wholes) / len(wholes)
            sums["weighting"] = sums["weighting"] + mean(
                [w * whole / average - 0.5 * w.log() for w, whole in zip(weights, wholes, strict=True)]
            )
        for name, value in sums.items():
            terms[name].append(value)
    return {name: torch.stack(values) for name, values in terms.items()}


@pytest.mark.parametrize(("peers", "stages"), [(2, 3), (3, 2), (2, 1), (1, 2)])
def test_lmcl_is_the_slow_loop(peers, stages):
    outputs, targets = outputs_of(peers, stages), targets_of()
    loss = made(outputs)
    found, wanted = loss(outputs, targets), slow_lmcl(loss, outputs, targets)
    assert list(found) == list(wanted)
    leaves = leaves_of(loss, outputs)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name])
    for name in found:
        for i in range(peers):
            if wanted[name][i].requires_grad and found[name].requires_grad:
                same_gradients(found[name][i], wanted[name][i], leaves)
    assert peers == 1 or all(term.requires_grad for term in found.values())


def test_the_last_stages_are_compared():
    deep, shallow, targets = outputs_of(2, 3), outputs_of(2, 3), targets_of()
    shallow = Outputs(shallow.logits, tuple(own[1:] for own in shallow.stages), shallow.features)
    found, wanted = made(deep, stages=2)(deep, targets), made(shallow)(shallow, targets)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name])


def test_what_is_held_fixed():
    """Weights of pairs and aggregated teachers are constants for the peers, and features for what finds the weights."""
    outputs, targets = outputs_of(2), targets_of()
    loss = made(outputs)
    terms = loss(outputs, targets)
    # The last stage's own output is not compared, but the features that the network makes of it.
    body = [outputs.logits, *outputs.features, *(each for own in outputs.stages for each in own[:-1])]

    def reached(value, leaves):
        grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        return [grad is not None and bool(grad.any()) for grad in grads]

    trust, rest = list(loss.trust.parameters()), [*loss.exits.parameters(), *loss.projectors.parameters()]
    assert all(reached(terms["weighting"].sum(), trust))
    assert not any(reached(terms["weighting"].sum(), [*body, *rest]))
    others = sum(term.sum() for name, term in terms.items() if name != "weighting")
    assert not any(reached(others, trust))
    assert all(reached(others, body[1:]))
    assert not any(reached(terms["distill"].sum(), [*body[1:], *rest]))


def test_the_weights_of_pairs_settle_where_the_docstring_says():
    """An average pair keeps a half, one with more loss gets less: 1 / (2 r), inside of (0.27, 0.73)."""
    ratios = torch.tensor([0.2, 0.8, 1.0, 1.5, 4.0], dtype=torch.float64)
    w = torch.linspace(0.2689, 0.7311, 40001, dtype=torch.float64)
    best = torch.stack([w[(w * r - w.log() / 2).argmin()] for r in ratios])
    torch.testing.assert_close(best, (1 / (2 * ratios)).clamp(0.2689, 0.7311), rtol=0, atol=1e-4)


def test_frozen_peers_teach_and_their_exits_learn():
    targets = targets_of()
    everyone = outputs_of(3, 2)
    loss = made(everyone)
    frozen = outputs_of(3, 2, frozen=(2,))
    found, wanted = loss(frozen, targets), loss(everyone, targets)
    for name, term in found.items():
        assert term[2] == 0
        if name != "exits":
            torch.testing.assert_close(term[:2], wanted[name][:2])
    torch.testing.assert_close(found["exits"][:2], wanted["exits"][:2] + wanted["exits"][2] / 2)
    total(found).backward()
    for part in (loss.exits[2], loss.projectors[4], loss.trust[5]):
        assert all(weight.grad is not None for weight in part.parameters())
    assert loss.exits[2].classify[0].weight.grad.any()
    assert loss.projectors[4][0].weight.grad.any()


@pytest.mark.parametrize("shape", [(), (5,), (4, 4), (4, 3, 2)], ids=str)
def test_vectors_signals_images_volumes(shape):
    g = torch.Generator().manual_seed(0)
    stages = tuple((torch.randn(6, 3, *shape, generator=g), torch.randn(6, 5, *shape, generator=g)) for _ in range(2))
    outputs = Outputs(
        torch.randn(2, 6, 4, generator=g), stages, tuple(torch.randn(6, 7, generator=g) for _ in range(2))
    )
    loss = LMCL()
    loss.setup(outputs)
    terms = loss(outputs, torch.eye(4)[torch.tensor([0, 0, 1, 1, 2, 2])])
    assert all(term.shape == (2,) and term.isfinite().all() and term.dtype == torch.float32 for term in terms.values())


def test_defaults_are_the_codes():
    loss = LMCL()
    assert (loss.temperature, loss.tau, loss.width, loss.stages) == (3.0, 0.1, 128, 3)
    assert loss.weights == {"vcl": 0.1, "soft_vcl": 1.0, "icl": 0.1, "soft_icl": 1.0}


def test_nothing_to_contrast_is_no_division_by_zero():
    outputs = outputs_of(2)
    terms = made(outputs, vcl=0.0, soft_vcl=0.0, icl=0.0, soft_icl=0.0)(outputs, targets_of())
    assert all(term.isfinite().all() for term in terms.values())


def test_parts_are_made_once_and_travel():
    outputs, targets = outputs_of(2), targets_of()
    loss = made(outputs)
    before = list(loss.parameters())
    loss.setup(outputs_of(2, batch=2))
    assert all(one is other for one, other in zip(before, loss.parameters(), strict=True))
    names = set(loss.state_dict())
    assert {name.split(".")[0] for name in names} == {"exits", "projectors", "trust"}
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        twin.setup(outputs)
        found = twin(outputs, targets)
        for name, term in loss(outputs, targets).items():
            assert torch.equal(found[name], term)
    other = made(outputs_of(2))
    other.load_state_dict(loss.state_dict())
    loss.setup(outputs_of(3, 2))
    assert len(loss.exits) == 3


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"tau": 0.0}, {"stages": 0}, {"width": -1}, {"icl": -1.0}], ids=str
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        LMCL(**setting)


def test_what_does_not_fit():
    outputs, targets = outputs_of(2), targets_of()
    with pytest.raises(ValueError, match=r"parts for 0 peers, there are 2: setup\(outputs\)"):
        LMCL()(outputs, targets)
    with pytest.raises(ValueError, match="compares features"):
        LMCL().setup(Outputs(outputs.logits, outputs.stages))
    with pytest.raises(ValueError, match="outputs of 1 stages"):
        LMCL().setup(Outputs(outputs.logits, features=outputs.features))
    with pytest.raises(ValueError, match="soft ones of"):
        made(outputs)(outputs, torch.tensor([0, 1, 2, 0]))


def test_pairs_that_fit_worse_lose_weight():
    """The first stage of one peer is noise, all else says the class: noise is trusted least."""
    targets = torch.eye(4)[torch.arange(12) % 4]
    clear, noise = 4 * targets, torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    outputs = Outputs(torch.zeros(2, 12, 4), ((noise, clear), (clear, clear)), (clear, clear))
    torch.manual_seed(0)
    loss = LMCL(width=4)
    loss.setup(outputs)
    for exits in loss.exits:
        exits.refine[0] = torch.nn.Identity()
    for each in loss.projectors:
        for part in (each[0], each[2]):
            torch.nn.init.eye_(part.weight)
            torch.nn.init.zeros_(part.bias)
    optimizer = torch.optim.Adam(loss.trust.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        loss(outputs, targets)["weighting"].sum().backward()
        optimizer.step()
    early, late, other = loss.trust[0](noise), loss.trust[1](clear), loss.trust[3](clear)
    noisy, fine = (torch.cosine_similarity(each, other).sigmoid().mean() for each in (early, late))
    assert noisy < 0.4
    assert fine > 0.6
