"""AMLN against its formulas in float64, written out stage by stage and sample by sample."""

import copy
import pickle

import pytest
import torch

from metamixer.core.types import Outputs, total
from metamixer.losses.amln import AMLN
from tests.oracle import draw, log_softmax, slow_layer

ALIKE = [[(3, 6, 6), (4, 4, 4), (5, 2, 2)]] * 2
OTHERS = [[(3, 6, 6), (4, 4, 4), (5, 2, 2)], [(2, 8, 6), (4, 3, 4), (6, 3, 2)], [(3, 6, 6), (5, 4, 4), (4, 2, 2)]]
SETTINGS = {"discriminator": 0.2, "temperature": 2.0, "weight": 0.7, "adversarial": 0.3, "align": 0.6}


def outputs_of(shapes, frozen=(), shared=0, batch=4):
    """Peers with stages of the given shapes, all of them leaves; ``shared`` first ones are the same for all."""
    stages = [
        [draw(batch, *shape, seed=10 * peer + k + 1).requires_grad_() for k, shape in enumerate(row)]
        for peer, row in enumerate(shapes)
    ]
    for row in stages[1:]:
        row[:shared] = stages[0][:shared]
    logits = (3 * draw(len(shapes), batch, 4)).requires_grad_()
    return Outputs(logits, tuple(tuple(row) for row in stages), frozen=frozen, shared=shared)


def targets_of(batch=4):
    return draw(batch, 4, seed=99).softmax(-1)


def made(shapes, frozen=(), shared=0, **settings):
    torch.manual_seed(0)
    outputs = outputs_of(shapes, frozen, shared)
    loss = AMLN(**settings)
    loss.setup(outputs)
    return loss, outputs


def slow_score(x, weights, name):
    x = x[None]
    for part in ("body.0", "body.2"):
        x = slow_layer(x, weights, f"discriminators.{name}.{part}", stride=2)
        x = torch.where(x > 0, x, 0.2 * x)
    x = x.flatten(2).mean(-1) if x.ndim > 2 else x
    return slow_layer(x, weights, f"discriminators.{name}.last")[0, 0]


def slow_same_size(one, other):
    """Two maps (C, ...) averaged down to the smaller on each axis; of other numbers of axes: vectors."""
    if one.ndim != other.ndim:
        return [each.flatten(1).mean(1) if each.ndim > 1 else each for each in (one, other)]
    found = []
    for x in (one, other):
        for axis in range(1, x.ndim):
            have, want = x.shape[axis], min(one.shape[axis], other.shape[axis])
            cells = [(i * have // want, -(-(i + 1) * have // want)) for i in range(want)]
            x = torch.stack([x.narrow(axis, low, high - low).mean(axis) for low, high in cells], axis)
        found.append(x)
    return found


def slow_terms(outputs, weights, peer, shared=0):
    """L_D, L_G, the alignment and the share of right decisions of one peer; nothing is detached but the target."""
    other = (peer - 1) % outputs.peers
    batch, count = outputs.logits.shape[1], len(outputs.stages[0])
    compared = range(shared, count)
    of_discriminator = of_network = align = right = 0.0
    for k in compared:
        differ = len({row[k].shape[1] for row in outputs.stages}) > 1
        for b in range(batch):
            maps = []
            for each in (other, peer):
                x = outputs.stages[each][k][b]
                maps.append(slow_layer(x[None], weights, f"transfers.{each}-{k + 1}")[0] if differ else x)
            real, fake = (slow_score(each, weights, f"{peer}-{k + 1}") for each in slow_same_size(*maps))
            of_discriminator = of_discriminator + ((1 - real) ** 2 + fake**2) / batch
            of_network = of_network + (1 - fake) ** 2 / batch / len(compared)
            right += (float(real > 0.5) + float(fake <= 0.5)) / 2 / batch / len(compared)
            if k == count - 1:
                continue
            final = outputs.stages[other][-1][b].detach()
            own, wanted = slow_same_size(outputs.stages[peer][k][b], final)
            name = f"containers.{peer}-{k + 1}"
            hidden = slow_layer(own[None], weights, f"{name}.0").clamp(min=0)
            squares = (slow_layer(hidden, weights, f"{name}.2")[0] - wanted) ** 2
            align = align + squares.sum() / squares.numel() / batch / (len(compared) - 1)
    return of_discriminator, of_network, align, right


def slow_logits(outputs, targets, peer, temperature):
    batch, classes = targets.shape
    task = distill = 0.0
    for b in range(batch):
        own, student = log_softmax(outputs.logits[peer, b]), log_softmax(outputs.logits[peer, b] / temperature)
        for c in range(classes):
            task = task - targets[b, c] * own[c] / batch
            for other in range(outputs.peers):
                if other != peer:
                    teacher = log_softmax(outputs.logits[other, b].detach() / temperature)
                    kl = teacher[c].exp() * (teacher[c] - student[c])
                    distill = distill + temperature**2 * kl / batch / (outputs.peers - 1)
    return task, distill


@pytest.mark.parametrize(
    ("shapes", "frozen", "shared"),
    [
        (ALIKE, (), 0),
        (OTHERS, (), 0),
        (OTHERS, (1,), 0),
        (ALIKE * 2, (0, 3), 0),
        ([[(3, 6, 6), (4, 4, 4), (5, 2, 2)]] * 3, (), 1),  # branches on a trunk
        ([[(3,), (4,)], [(2,), (5,)]], (), 0),  # vectors
        ([[(3, 4, 4), (5,)]] * 2, (), 0),  # maps, then vectors
        ([[(3, 5), (5, 3)], [(3, 4), (5, 2)]], (), 0),  # signals
    ],
    ids=str,
)
def test_every_term_and_every_players_gradients(shapes, frozen, shared):
    loss, outputs = made(shapes, frozen, shared, **SETTINGS)
    targets, peers = targets_of(), len(shapes)
    terms = loss(outputs, targets)
    assert list(terms) == ["task", "distill", "adversarial", "align", "discriminator"]
    total(terms).backward()
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in loss.named_parameters()}
    found = {name: weight.grad for name, weight in loss.named_parameters()}
    for peer in range(peers):
        rows = {name: term[peer] for name, term in terms.items()}
        if peer in frozen:
            assert not any(row.any() for row in rows.values())
            assert all(stage.grad is None for stage in outputs.stages[peer])
            assert not any(name.startswith((f"discriminators.{peer}-", f"containers.{peer}-")) for name in weights)
            assert all(found[name] is None for name in weights if name.startswith(f"transfers.{peer}-"))
            continue
        task, distill = slow_logits(outputs, targets, peer, 2.0)
        of_discriminator, of_network, align, right = slow_terms(outputs, weights, peer, shared)
        torch.testing.assert_close(rows["task"], task)
        torch.testing.assert_close(rows["distill"], 0.7 * distill)
        torch.testing.assert_close(rows["adversarial"], 0.3 * of_network)
        torch.testing.assert_close(rows["align"], 0.6 * align)
        torch.testing.assert_close(rows["discriminator"], 0.2 * of_discriminator)
        assert loss.watched["discriminator_accuracy"][peer].item() == pytest.approx(right)

        (of_logits,) = torch.autograd.grad(task + 0.7 * distill, outputs.logits)
        torch.testing.assert_close(outputs.logits.grad[peer], of_logits[peer])
        stages = outputs.stages[peer][shared:]
        own = [name for name in weights if name.startswith((f"transfers.{peer}-", f"containers.{peer}-"))]
        wanted = torch.autograd.grad(
            0.3 * of_network + 0.6 * align, [*stages, *(weights[name] for name in own)], retain_graph=True
        )
        for stage, grad in zip(stages, wanted, strict=False):
            torch.testing.assert_close(stage.grad, grad)
            assert stage.grad.any()
        for name, grad in zip(own, wanted[len(stages) :], strict=True):
            torch.testing.assert_close(found[name], grad)
        own = [name for name in weights if name.startswith(f"discriminators.{peer}-")]
        assert len(own) == 6 * len(stages)
        for name, grad in zip(
            own, torch.autograd.grad(0.2 * of_discriminator, [weights[name] for name in own]), strict=True
        ):
            torch.testing.assert_close(found[name], grad)
    assert all(stage.grad is None for row in outputs.stages for stage in row[:shared])


def test_no_term_of_a_peer_reaches_another():
    """Neither the discriminator's look at the other's features nor the target of the alignment has a graph."""
    loss, outputs = made(OTHERS)
    terms = loss(outputs, targets_of())
    features = [stage for row in outputs.stages for stage in row]
    for peer in range(3):
        value = sum(term[peer] for term in terms.values())
        grads = torch.autograd.grad(value, features, retain_graph=True, allow_unused=True)
        reached = [grad is not None and bool(grad.any()) for grad in grads]
        assert reached == [other == peer for other in range(3) for _ in range(3)]
        assert (
            torch.autograd.grad(terms["discriminator"][peer], features, retain_graph=True, allow_unused=True)
            == (None,) * 9
        )


def test_a_container_can_reach_its_target():
    """Where it puts out the other's final features, bias alone for constant ones, there is nothing left to align."""
    loss, _ = made(ALIKE)
    constant = tuple(tuple(torch.full((4, *shape), 0.25, dtype=torch.float64) for shape in row) for row in ALIKE)
    with torch.no_grad():
        for container in loss.containers.values():
            container[2].weight.zero_()
            container[2].bias.fill_(0.25)
    terms = loss(Outputs(draw(2, 4, 4), constant), targets_of())
    assert not terms["align"].any()
    with torch.no_grad():
        for container in loss.containers.values():
            container[2].bias.fill_(0.75)
    terms = loss(Outputs(draw(2, 4, 4), constant), targets_of())
    torch.testing.assert_close(terms["align"], torch.full((2,), 0.25, dtype=torch.float64))


def test_without_its_own_terms_it_is_dml():
    from metamixer.losses import DML

    loss, outputs = made(OTHERS, adversarial=0.0, align=0.0)
    terms, dml = loss(outputs, targets_of()), DML(temperature=3.0)(outputs, targets_of())
    for name in ("task", "distill"):
        torch.testing.assert_close(terms[name], dml[name])
    assert not terms["adversarial"].any()
    assert not terms["align"].any()


def test_one_stage_has_nothing_in_between():
    loss, outputs = made([[(3, 4, 4)]] * 2)
    assert not loss.containers
    terms = loss(outputs, targets_of())
    assert terms["align"].tolist() == [0.0, 0.0]
    assert terms["discriminator"].all()


def test_setup_makes_parts_once():
    loss, outputs = made(OTHERS, frozen=(1,))
    assert list(loss.discriminators) == ["0-1", "2-1", "0-2", "2-2", "0-3", "2-3"]
    assert list(loss.containers) == ["0-1", "2-1", "0-2", "2-2"]
    assert sorted(loss.transfers) == [f"{peer}-{stage}" for peer in range(3) for stage in (1, 2, 3)]
    assert {key for key, part in loss.transfers.items() if part.weight.requires_grad} == {
        f"{peer}-{stage}" for peer in (0, 2) for stage in (1, 2, 3)
    }
    before = list(loss.parameters())
    loss.setup(outputs)
    loss.setup(outputs_of(OTHERS, frozen=(1,), batch=2))
    assert all(now is then for now, then in zip(loss.parameters(), before, strict=True))
    loss.setup(outputs_of(ALIKE))
    assert not loss.transfers, "peers of the same widths are compared as they are"
    assert len(loss.discriminators) == 6
    assert len(loss.containers) == 4


def test_copies_continue_alike():
    loss, outputs = made(OTHERS)
    wanted = loss(outputs, targets_of())
    fresh = AMLN()
    fresh.setup(outputs)
    fresh.load_state_dict(loss.state_dict())
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), fresh):
        twin.setup(outputs)  # which keeps what is there
        for name, term in twin(outputs, targets_of()).items():
            assert torch.equal(term, wanted[name])


def test_half_precision_features_and_autocast():
    torch.manual_seed(0)
    stages = tuple(tuple(torch.randn(4, *shape, dtype=torch.bfloat16) for shape in row) for row in OTHERS)
    outputs = Outputs(torch.randn(3, 4, 3), stages)
    loss = AMLN()
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
    stages = tuple(tuple(torch.zeros(4, *shape, device="meta") for shape in row) for row in OTHERS)
    outputs = Outputs(torch.zeros(3, 4, 5, device="meta"), stages)
    loss = AMLN()
    loss.setup(outputs)
    terms = loss(outputs, torch.zeros(4, 5, device="meta"), progress=torch.zeros((), device="meta"))
    assert {term.shape for term in (*terms.values(), *loss.watched.values())} == {(3,)}


def test_a_lone_peer_and_parts_that_are_not_there():
    with pytest.raises(ValueError, match="at least two peers"):
        AMLN().setup(outputs_of(ALIKE[:1]))
    with pytest.raises(ValueError, match="for 0 peers, there are 2: setup"):
        AMLN()(outputs_of(ALIKE), targets_of())
    loss, _ = made(ALIKE)
    with pytest.raises(ValueError, match="for 2 peers, there are 3"):
        loss(outputs_of(OTHERS), targets_of())
    with pytest.raises(ValueError, match="stages"):
        AMLN().setup(Outputs(torch.zeros(2, 4, 5)))
    with pytest.raises(ValueError, match="3 stages"):
        AMLN().setup(outputs_of([[(3, 4, 4), (3, 4, 4)]] * 2, shared=2))
    with pytest.raises(ValueError, match="soft"):
        loss(outputs_of(ALIKE), torch.tensor([0, 1, 2, 3]))


@pytest.mark.parametrize(
    "setting", [{"temperature": 0.0}, {"weight": -1.0}, {"adversarial": -0.1}, {"align": float("nan")}], ids=str
)
def test_invalid_settings(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}="):
        AMLN(**setting)
