"""AFD against the formulas of its players in float64: each player's gradients are taken of its own loss alone."""

import copy
import pickle

import pytest
import torch

from metamixer.core.types import Outputs, total
from metamixer.losses.afd import AFD
from tests.oracle import draw, log_softmax, slow_layer

ALIKE = [(3, 4, 4), (3, 4, 4)]
OTHERS = [(3, 4, 4), (5, 2, 4), (4, 3, 6)]


def outputs_of(shapes, frozen=(), batch=5):
    """Peers whose last of two stages has the given shape; all that may have a gradient is a leaf."""
    logits = (3 * draw(len(shapes), batch, 4)).requires_grad_()
    stages = tuple(
        (draw(batch, 2, 6), draw(batch, *shape, seed=10 + peer).requires_grad_()) for peer, shape in enumerate(shapes)
    )
    return Outputs(logits, stages, frozen=frozen)


def targets_of(batch=5):
    return draw(batch, 4, seed=1).softmax(-1)


def made(shapes, frozen=(), **settings):
    torch.manual_seed(0)
    outputs = outputs_of(shapes, frozen)
    loss = AFD(**settings)
    loss.setup(outputs)
    return loss, outputs


def slow_score(x, weights, peer):
    """D_i of one sample: two strided layers with leaky ReLU, the mean over all places, one number."""
    x = x[None]
    for name in ("body.0", "body.2"):
        x = slow_layer(x, weights, f"discriminators.{peer}.{name}", stride=2)
        x = torch.where(x > 0, x, 0.2 * x)
    x = x.flatten(2).mean(-1) if x.ndim > 2 else x
    return slow_layer(x, weights, f"discriminators.{peer}.last")[0, 0]


def slow_pool(x, size):
    """(C, ...) averaged down to the size, axis by axis where cells may overlap."""
    for axis, (have, want) in enumerate(zip(x.shape[1:], size, strict=True), start=1):
        cells = [x.narrow(axis, i * have // want, -(-(i + 1) * have // want) - i * have // want) for i in range(want)]
        x = torch.stack([cell.mean(axis) for cell in cells], axis)
    return x


def slow_players(outputs, weights, peer):
    """L_D and L_G of one peer, sample by sample, nothing detached: who takes a gradient of what, the test decides."""
    other = peer - 1 if peer else outputs.peers - 1
    batch = len(outputs.logits[0])
    of_discriminator = of_network = right = 0.0
    for b in range(batch):
        maps = []
        for each in (other, peer):
            maps.append(slow_layer(outputs.stages[each][-1][b][None], weights, f"transfers.{each}")[0])
        if maps[0].ndim == maps[1].ndim:
            size = [min(sizes) for sizes in zip(maps[0].shape[1:], maps[1].shape[1:], strict=True)]
            maps = [slow_pool(each, size) for each in maps]
        else:
            maps = [each.flatten(1).mean(1) if each.ndim > 1 else each for each in maps]
        real, fake = (slow_score(each, weights, peer) for each in maps)
        of_discriminator = of_discriminator + ((1 - real) ** 2 + fake**2) / batch
        of_network = of_network + (1 - fake) ** 2 / batch
        right += (float(real > 0.5) + float(fake <= 0.5)) / (2 * batch)
    return of_discriminator, of_network, right


def slow_logits(outputs, targets, peer, temperature, others):
    """CE and the mean over the others of T^2 KL(p_j || p_i)."""
    batch, classes = targets.shape
    task = distill = 0.0
    for b in range(batch):
        own, student = log_softmax(outputs.logits[peer, b]), log_softmax(outputs.logits[peer, b] / temperature)
        for c in range(classes):
            task = task - targets[b, c] * own[c] / batch
            for other in others:
                teacher = log_softmax(outputs.logits[other, b].detach() / temperature)
                distill = distill + temperature**2 * teacher[c].exp() * (teacher[c] - student[c]) / batch / len(others)
    return task, distill


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize(
    ("shapes", "frozen"),
    [
        (ALIKE, ()),
        (OTHERS, ()),
        (OTHERS, (1,)),
        ([(3, 4)] * 4, (0, 3)),
        ([(3,), (2,), (4,)], ()),  # vectors
        ([(3, 4), (2, 7)], ()),  # signals
        ([(3, 2, 2, 3), (2, 3, 2, 2)], ()),  # volumes
        ([(3, 4, 4), (5,), (4, 6)], ()),  # of other axes
    ],
    ids=str,
)
def test_every_term_and_every_players_gradients(shapes, frozen, cyclic):
    loss, outputs = made(
        shapes, frozen, temperature=2.0, weight=0.7, adversarial=0.3, discriminator=0.2, cyclic_logits=cyclic
    )
    targets, peers = targets_of(), len(shapes)
    terms = loss(outputs, targets)
    assert list(terms) == ["task", "distill", "adversarial", "discriminator"]
    total(terms).backward()
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in loss.named_parameters()}
    found = {name: weight.grad for name, weight in loss.named_parameters()}
    for peer in range(peers):
        rows = {name: term[peer] for name, term in terms.items()}
        if peer in frozen:
            assert not any(row.any() for row in rows.values())
            assert outputs.stages[peer][-1].grad is None or not outputs.stages[peer][-1].grad.any()
            assert not outputs.logits.grad[peer].any()
            assert found[f"transfers.{peer}.weight"] is None
            assert not any(name.startswith(f"discriminators.{peer}.") for name in weights)
            assert not loss.watched["discriminator_accuracy"][peer]
            continue
        others = [(peer - 1) % peers] if cyclic else [other for other in range(peers) if other != peer]
        task, distill = slow_logits(outputs, targets, peer, 2.0, others)
        of_discriminator, of_network, right = slow_players(outputs, weights, peer)
        torch.testing.assert_close(rows["task"], task)
        torch.testing.assert_close(rows["distill"], 0.7 * distill)
        torch.testing.assert_close(rows["adversarial"], 0.3 * of_network)
        torch.testing.assert_close(rows["discriminator"], 0.2 * of_discriminator)
        assert loss.watched["discriminator_accuracy"][peer].item() == pytest.approx(right)

        (of_logits,) = torch.autograd.grad(task + 0.7 * distill, outputs.logits)
        torch.testing.assert_close(outputs.logits.grad[peer], of_logits[peer])
        own = [name for name in weights if name.startswith(f"transfers.{peer}.")]
        features = outputs.stages[peer][-1]
        wanted = torch.autograd.grad(0.3 * of_network, [features, *(weights[name] for name in own)], retain_graph=True)
        torch.testing.assert_close(features.grad, wanted[0])
        assert features.grad.any()
        for name, grad in zip(own, wanted[1:], strict=True):
            torch.testing.assert_close(found[name], grad)
        own = [name for name in weights if name.startswith(f"discriminators.{peer}.")]
        for name, grad in zip(
            own, torch.autograd.grad(0.2 * of_discriminator, [weights[name] for name in own]), strict=True
        ):
            torch.testing.assert_close(found[name], grad)


def test_no_term_of_a_peer_reaches_another():
    loss, outputs = made(OTHERS)
    terms = loss(outputs, targets_of())
    features = [stages[-1] for stages in outputs.stages]
    for peer in range(3):
        value = sum(term[peer] for term in terms.values())
        grads = torch.autograd.grad(value, features, retain_graph=True, allow_unused=True)
        assert [grad is not None and bool(grad.any()) for grad in grads] == [other == peer for other in range(3)]
        grads = torch.autograd.grad(terms["discriminator"][peer], features, retain_graph=True, allow_unused=True)
        assert grads == (None, None, None)


def test_defaults():
    loss, outputs = made(ALIKE)
    terms, twin = loss(outputs, targets_of()), AFD(temperature=3.0, weight=1.0, adversarial=0.05, discriminator=0.01)
    twin.setup(outputs)
    twin.load_state_dict(loss.state_dict())
    for name, term in twin(outputs, targets_of()).items():
        torch.testing.assert_close(term, terms[name])


def test_alone_and_without_the_game_it_is_dml():
    from metamixer.losses import DML

    loss, outputs = made(OTHERS, adversarial=0.0)
    terms, dml = loss(outputs, targets_of()), DML(temperature=3.0)(outputs, targets_of())
    for name in ("task", "distill"):
        torch.testing.assert_close(terms[name], dml[name])
    assert not terms["adversarial"].any()


def test_setup_makes_parts_once():
    torch.manual_seed(0)
    loss, outputs = made(OTHERS, frozen=(1,))
    assert sorted(name.rpartition(".")[0] for name, _ in loss.named_parameters() if name.endswith("weight")) == [
        *(f"discriminators.{peer}.{part}" for peer in (0, 2) for part in ("body.0", "body.2", "last")),
        *(f"transfers.{peer}" for peer in range(3)),
    ]
    assert [transfer.weight.shape[:2] for transfer in loss.transfers] == [(3, 3), (3, 5), (3, 4)]
    assert not any(weight.requires_grad for weight in loss.transfers[1].parameters())
    before = list(loss.parameters())
    loss.setup(outputs)
    loss.setup(outputs_of(OTHERS, frozen=(1,), batch=2))
    assert all(now is then for now, then in zip(loss.parameters(), before, strict=True))
    loss.setup(outputs_of([(3, 2, 2), (5, 2, 2), (4, 5, 5)], frozen=(1,)))  # other sizes take the same layers
    assert all(now is then for now, then in zip(loss.parameters(), before, strict=True))
    loss.setup(outputs_of(ALIKE))
    assert len(loss.transfers) == len(loss.discriminators) == 2


def test_width():
    loss, outputs = made(OTHERS, width=7)
    assert {transfer.weight.shape[0] for transfer in loss.transfers} == {7}
    assert loss(outputs, targets_of())["discriminator"].isfinite().all()


def test_copies_continue_alike():
    loss, outputs = made(ALIKE)
    wanted = loss(outputs, targets_of())
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        twin.setup(outputs)  # which keeps what is there
        for name, term in twin(outputs, targets_of()).items():
            assert torch.equal(term, wanted[name])


def test_setup_for_half_precision_features_makes_single_precision_weights():
    torch.manual_seed(0)
    outputs = Outputs(torch.randn(2, 4, 3), tuple((torch.randn(4, 3, 4, 4, dtype=torch.bfloat16),) for _ in range(2)))
    loss = AFD()
    loss.setup(outputs)
    assert {weight.dtype for weight in loss.parameters()} == {torch.float32}
    outside = loss(outputs, torch.full((4, 3), 1 / 3))
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(outputs, torch.full((4, 3), 1 / 3))
    for name, term in inside.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, outside[name], rtol=0.05, atol=0.02)
    total(inside).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in loss.parameters())


def test_nothing_is_read_back_from_the_device():
    """On the meta device there are no values: whoever reads one on the host, which no graph can capture, fails."""
    outputs = Outputs(
        torch.zeros(3, 4, 5, device="meta"), tuple((torch.zeros(4, *shape, device="meta"),) for shape in OTHERS)
    )
    loss = AFD()
    loss.setup(outputs)
    terms = loss(outputs, torch.zeros(4, 5, device="meta"), progress=torch.zeros((), device="meta"))
    assert {term.shape for term in (*terms.values(), *loss.watched.values())} == {(3,)}


def test_a_lone_peer_and_parts_that_are_not_there():
    with pytest.raises(ValueError, match="at least two peers"):
        AFD().setup(outputs_of(ALIKE[:1]))
    with pytest.raises(ValueError, match=r"for 0 peers, there are 2: setup"):
        AFD()(outputs_of(ALIKE), targets_of())
    loss, _ = made(ALIKE)
    with pytest.raises(ValueError, match=r"for 2 peers, there are 3"):
        loss(outputs_of(OTHERS), targets_of())
    with pytest.raises(ValueError, match="stages"):
        AFD().setup(Outputs(torch.zeros(2, 4, 5)))
    with pytest.raises(ValueError, match="soft"):
        loss(outputs_of(ALIKE), torch.tensor([0, 1, 2, 3, 0]))


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 0.0}, {"weight": -1.0}, {"adversarial": -0.1}, {"adversarial": float("nan")}, {"width": 0}],
    ids=str,
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        AFD(**setting)
