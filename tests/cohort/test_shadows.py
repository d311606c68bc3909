"""Shadows: copies of the peers that follow them instead of learning, step for step against a loop in float64."""

import copy
import pickle

import pytest
import torch
from torch import nn

from metamixer import DML, Batch, MetaMixer, Optim, Trainer, total, train_step
from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.mixing import blend
from metamixer.core.plan import Blend, MixPlan
from tests import toys

P = 3


def network(seed, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    ).double()


def cohort_of(trunk=False, rescale=False, widths=(5, 5, 5)):
    networks = [network(seed, width) for seed, width in enumerate(widths)]
    if trunk:
        share_trunk(networks, "0", rescale=rescale)
    return Cohort(networks, stages=["0", "1"], shadows=True)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def move(cohort, seed):
    """Change weights and statistics of the peers, each tensor by itself, as training would."""
    with torch.no_grad():
        for index, weight in enumerate(p for p in cohort.parameters() if p.requires_grad):
            weight += 0.1 * draw(*weight.shape, seed=100 * seed + index)
    cohort.train()
    cohort(draw(4, 1, 6, 6, seed=seed))


def states(peers):
    return [{name: value.clone() for name, value in peer.state_dict().items()} for peer in peers]


def assert_equal_states(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert list(one) == list(other)
        for name in one:
            torch.testing.assert_close(one[name], other[name], msg=name)


# How they follow


@pytest.mark.parametrize("decays", [[0.0, 0.5, 0.9], [0.999], [1.0], [0.0]], ids=str)
@pytest.mark.parametrize("trunk", [False, True])
def test_they_follow_exactly(trunk, decays):
    cohort = cohort_of(trunk)
    wanted = states(cohort.peers[:P])
    for step, decay in enumerate(decays):
        move(cohort, step)
        cohort.update_shadows(decay)
        for shadow, peer in zip(wanted, cohort.peers[:P], strict=True):
            for name, value in peer.state_dict().items():
                if value.is_floating_point():
                    shadow[name] = decay * shadow[name] + (1 - decay) * value
                else:
                    shadow[name] = value.clone()
    assert_equal_states(states(cohort.peers[P:]), wanted)


@pytest.mark.parametrize("trunk", [False, True])
def test_a_decay_of_zero_copies_to_the_bit(trunk):
    cohort = cohort_of(trunk)
    move(cohort, 0)
    cohort.update_shadows(0.0)
    for shadow, peer in zip(cohort.peers[P:], cohort.peers[:P], strict=True):
        assert all(torch.equal(value, peer.state_dict()[name]) for name, value in shadow.state_dict().items())


def test_they_begin_as_copies_and_stay_until_they_are_moved():
    cohort = cohort_of()
    began = states(cohort.peers[:P])
    assert_equal_states(states(cohort.peers[P:]), began)
    move(cohort, 1)
    assert_equal_states(states(cohort.peers[P:]), began)
    own = {p.data_ptr() for p in cohort.peers[:P].parameters()}
    assert not own & {p.data_ptr() for p in cohort.peers[P:].parameters()}


def test_peers_are_left_as_they_are():
    cohort = cohort_of(trunk=True)
    move(cohort, 0)
    before = states(cohort.peers[:P])
    cohort.update_shadows(0.3)
    assert_equal_states(states(cohort.peers[:P]), before)
    assert all(p.requires_grad for p in cohort.peers[:P].parameters())


def test_peers_of_different_architectures():
    cohort = cohort_of(widths=(3, 5, 8))
    move(cohort, 0)
    cohort.update_shadows(0.0)
    assert_equal_states(states(cohort.peers[P:]), states(cohort.peers[:P]))


# What they are


@pytest.mark.parametrize("mode", [True, False])
def test_they_are_frozen_and_in_evaluation_mode(mode):
    cohort = cohort_of().train(mode)
    assert cohort.learners == (0, 1, 2)
    assert cohort.frozen == {3, 4, 5}
    assert cohort.shadows == 3
    assert all(module.training == mode for peer in cohort.peers[:P] for module in peer.modules())
    assert not any(module.training for peer in cohort.peers[P:] for module in peer.modules())
    assert not any(p.requires_grad for p in cohort.peers[P:].parameters())
    before = states(cohort.peers[P:])
    outputs = cohort(draw(4, 1, 6, 6))
    assert (outputs.peers, outputs.shadows, outputs.frozen, outputs.learners) == (6, 3, (3, 4, 5), (0, 1, 2))
    assert not any(stage.requires_grad for peer in outputs.stages[P:] for stage in peer)
    assert not any(feature.requires_grad for feature in outputs.features[P:])
    outputs.logits.square().sum().backward()
    assert all(p.grad is None for p in cohort.peers[P:].parameters())
    assert all(p.grad is not None for p in cohort.peers[:P].parameters())
    assert_equal_states(states(cohort.peers[P:]), before)


def test_no_optimizer_moves_them():
    cohort = cohort_of()
    optimizer = Optim(weight_decay=0.1).build(cohort, DML())
    ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert ids == {id(p) for p in cohort.peers[:P].parameters()}


def test_shadows_share_a_trunk_where_peers_do():
    cohort = cohort_of(trunk=True)
    shadows = cohort.peers[P:]
    assert len({id(shadow[0]) for shadow in shadows}) == 1
    assert shadows[0][0] is not cohort.peers[0][0]
    assert len({id(shadow[1]) for shadow in shadows}) == P
    assert cohort.shared == 1
    cohort(draw(4, 1, 6, 6))  # the first pass also looks where the batch is
    ran = []
    for owner, module in (("peer", cohort.peers[0][0][0]), ("shadow", shadows[0][0][0])):
        module.register_forward_hook(lambda *_, owner=owner: ran.append(owner))
    outputs = cohort(draw(4, 1, 6, 6))
    assert sorted(ran) == ["peer", "shadow"], "each trunk runs once"
    for shadow, logits in zip(shadows, outputs.logits[P:], strict=True):
        torch.testing.assert_close(logits, shadow(draw(4, 1, 6, 6)))


# What they see


@pytest.mark.parametrize("trunk", [False, True])
def test_they_see_the_view_of_their_peer(trunk):
    cohort = cohort_of(trunk).eval()
    move(cohort, 3)
    cohort.eval()
    views = [draw(4, 1, 6, 6, seed=seed) for seed in range(P)]
    outputs = cohort(views)
    for index, peer in enumerate(cohort.peers):
        assert outputs.images[index] is views[index % P]
        torch.testing.assert_close(outputs.logits[index], peer(views[index % P]))
        torch.testing.assert_close(outputs.stages[index][0], peer[0](views[index % P]))
    with pytest.raises(ValueError, match="2 views of the images for 3 peers"):
        cohort(views[:2])


@pytest.mark.parametrize("rescale", [False, True])
def test_branches_that_see_views_of_their_own_pass_the_trunk_apart(rescale):
    """The gradient of the trunk is the sum over the branches, divided by their number where it is rescaled."""
    cohort = cohort_of(trunk=True, rescale=rescale).eval()
    views = [draw(4, 1, 6, 6, seed=seed) for seed in range(P)]
    weight = cohort.peers[0][0][0].weight
    (found,) = torch.autograd.grad(cohort(views).logits[:P].square().sum(), weight)
    alone = sum(torch.autograd.grad(peer(view).square().sum(), weight)[0] for peer, view in zip(cohort.peers, views))  # noqa: B905
    torch.testing.assert_close(found, alone / P if rescale else alone)


def test_the_same_view_for_all_is_computed_once():
    cohort = cohort_of(trunk=True)
    cohort(draw(4, 1, 6, 6))  # the first pass also looks where the batch is
    ran = []
    cohort.peers[0][0][0].register_forward_hook(lambda *_: ran.append(1))
    images = draw(4, 1, 6, 6)
    cohort([images] * P)
    assert len(ran) == 1
    cohort([images, images + 1, images])
    assert len(ran) == 4


@pytest.mark.parametrize("stage", [1, (1, 2, 0)])
def test_they_are_mixed_as_their_peer_is(stage):
    cohort = cohort_of().eval()
    images, lam, partner = draw(4, 1, 6, 6), torch.tensor(0.3, dtype=torch.float64), torch.tensor([1, 2, 3, 0])
    outputs = cohort(images, MixPlan((Blend(lam, partner, stage),)))
    for index, peer in enumerate(cohort.peers):
        place = stage if isinstance(stage, int) else stage[index % P]
        x = blend(images, lam, partner) if place == 0 else images
        for k in (1, 2):
            x = peer[k - 1](x)
            x = blend(x, lam, partner) if place == k else x
        torch.testing.assert_close(outputs.logits[index], peer[3](x.flatten(1)))


# Copies, state, errors


@pytest.mark.parametrize("trunk", [False, True])
def test_copies_and_pickles_follow_their_own_peers(trunk):
    cohort = cohort_of(trunk)
    move(cohort, 0)
    for twin in (copy.deepcopy(cohort), pickle.loads(pickle.dumps(cohort))):
        before = states(cohort.peers)
        assert (twin.shadows, twin.frozen, twin.learners) == (cohort.shadows, cohort.frozen, cohort.learners)
        assert_equal_states(states(twin.peers), before)
        move(twin, 1)
        twin.update_shadows(0.0)
        assert_equal_states(states(twin.peers[P:]), states(twin.peers[:P]))
        assert_equal_states(states(cohort.peers), before)
        assert not torch.equal(twin.peers[P][0][0].weight, cohort.peers[P][0][0].weight)
        images = draw(2, 1, 6, 6)
        assert twin.eval()(images).logits.shape == (2 * P, 2, 3)


def test_state_is_loaded():
    cohort, fresh = cohort_of(), cohort_of()
    move(cohort, 0)
    cohort.update_shadows(0.5)
    fresh.load_state_dict(cohort.state_dict())
    assert_equal_states(states(fresh.peers), states(cohort.peers))


def test_what_does_not_go():
    with pytest.raises(ValueError, match="shadows=True"):
        Cohort([network(0), network(1)], stages=["0", "1"]).update_shadows(0.5)
    with pytest.raises(ValueError, match="frozen peers and shadows"):
        Cohort([network(0), network(1)], stages=["0", "1"], frozen=[1], shadows=True)


def test_a_step_runs_with_them_and_other_losses_leave_them_alone():
    cohort = Cohort([toys.network(0), toys.network(1)], stages=["0", "1"], shadows=True)
    batch = Batch(torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2]))
    mixer = MetaMixer(local_probability=1.0, global_probability=1.0, stage_draws=2)
    for seed in range(5):
        step = train_step(cohort, mixer, DML(), batch, torch.Generator().manual_seed(seed))
        assert not step.terms["task"][2:].any()
        total(step.terms).backward()
    assert all(p.grad is None for p in cohort.peers[2:].parameters())


class Averaged(DML):
    """DML whose shadows average."""

    def after_step(self, cohort):
        cohort.update_shadows(0.9)

    def deployable(self, peers):
        return range(peers // 2, peers)


def test_a_trainer_validates_them_and_deploys_one():
    trainer = Trainer(
        Cohort([toys.network(0), toys.network(1)], stages=["0", "1"], shadows=True),
        MetaMixer(local_probability=0.5),
        Averaged(),
        optim=Optim(lr=0.05),
        epochs=2,
        accelerator="cpu",
    )
    fitted = trainer.fit(toys.loader(), toys.validation())
    assert len(fitted.val.peers) == 4
    assert fitted.best.peer in (2, 3)
