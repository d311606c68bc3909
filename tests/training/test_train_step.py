import copy

import pytest
import torch
from torch.nn import functional as F

from metamixer.cohort.cohort import Cohort
from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import Batch, total
from metamixer.losses import DML, Independent
from metamixer.mixers import MetaMixer, NoMix
from metamixer.models import resnet8
from metamixer.training.train_step import train_step


def resnets():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [resnet8(num_classes=4, in_channels=1) for _ in range(2)]


def batches(n):
    g = torch.Generator().manual_seed(1)
    return [Batch(torch.randn(8, 1, 8, 8, generator=g), torch.randint(4, (8,), generator=g)) for _ in range(n)]


def test_plain_training_is_the_hand_written_loop_bit_for_bit():
    networks = resnets()
    by_hand = copy.deepcopy(networks)
    cohort = Cohort(networks)
    optimizer = torch.optim.SGD(cohort.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(4):
        optimizer.zero_grad()
        total(train_step(cohort, NoMix(), Independent(), batch).terms).backward()
        optimizer.step()
    for network in by_hand:  # one after the other: plain networks know nothing of each other
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for batch in batches(4):
            optimizer.zero_grad()
            F.cross_entropy(network(batch.images), F.one_hot(batch.labels, 4).float()).backward()
            optimizer.step()
    for network, twin in zip(networks, by_hand, strict=True):
        for (name, ours), theirs in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs), name


def test_what_a_step_hands_back():
    cohort, (batch,) = Cohort(resnets()), batches(1)
    terms, outputs, targets, watched = train_step(cohort, MetaMixer(), DML(), batch)
    assert {name: term.shape for name, term in terms.items()} == {"task": (2,), "distill": (2,)}
    assert outputs.logits.shape == (2, 8, 4)
    assert not watched
    torch.testing.assert_close(targets.sum(1), torch.ones(8))
    torch.testing.assert_close(terms["task"], DML()(outputs, targets)["task"])


def test_everything_is_handed_on():
    """Companions, generator and progress reach the mixer; plan, targets and progress what comes after."""
    (batch,) = batches(1)
    batch = Batch(batch.images, batch.labels, companions=batch.images + 1)
    plan = MixPlan((Blend(torch.tensor(0.25), torch.arange(8).roll(1), 1),))
    generator, seen = torch.Generator(), []

    def mixer(images, labels, **rest):
        seen.append((images, labels, rest))
        return plan

    def loss(outputs, targets, progress=None):
        seen.append((outputs, targets, progress))
        return {"task": outputs.logits.mean((1, 2))}

    cohort = Cohort(resnets()).eval()
    step = train_step(cohort, mixer, loss, batch, generator, progress=0.4)
    (images, labels, rest), (outputs, targets, progress) = seen
    assert images is batch.images
    assert labels is batch.labels
    assert rest == {"companions": batch.companions, "generator": generator, "progress": 0.4}
    assert progress == 0.4
    assert step.outputs is outputs
    assert step.targets is targets
    assert torch.equal(outputs.logits, cohort(batch.images, plan).logits)
    one_hot = torch.eye(4)[batch.labels]
    torch.testing.assert_close(targets, 0.25 * one_hot + 0.75 * one_hot.roll(1, 0))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_step_is_replayed_from_its_seed(seed):
    (batch,) = batches(1)
    results = []
    for world in (0, 1):
        torch.manual_seed(world)
        cohort = Cohort(resnets())
        step = train_step(cohort, MetaMixer(), DML(), batch, torch.Generator().manual_seed(seed))
        total(step.terms).backward()
        results.append([step.outputs.logits, step.targets, *(p.grad for p in cohort.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_pair_is_a_batch():
    cohort, images, labels = Cohort(resnets()).eval(), torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    found = [train_step(cohort, NoMix(), DML(), batch) for batch in ((images, labels), Batch(images, labels))]
    assert torch.equal(total(found[0].terms), total(found[1].terms))
    with pytest.raises(ValueError, match="a batch is a tuple of Tensor, list; accepted"):
        train_step(cohort, NoMix(), DML(), (images, [0] * 6))
