"""Peers whose blocks are computed again in the backward pass: everything but the memory is as it was."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import total
from metamixer.losses import AFD, DML, FFL
from metamixer.models import build

BATCH = 6
PARTNER = torch.tensor([1, 2, 3, 4, 5, 0])
LABELS = torch.arange(BATCH) % 4


def plan_at(stage):
    return MixPlan((Blend(torch.tensor(0.3, dtype=torch.float64), PARTNER, stage),))


def images(size, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(BATCH, 3, size, size, generator=draw, dtype=torch.float64).requires_grad_()


def plain_chain():
    """No block has two layers: the whole network is one."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(5, 4))


NETWORKS = {
    "resnet8": (lambda: build("resnet8", num_classes=4), 16),
    "vgg8": (lambda: build("vgg8", num_classes=4), 32),
    "plain chain": (plain_chain, 16),
    "dropout": (lambda: timm.create_model("resnet10t", num_classes=4, drop_path_rate=0.3, drop_rate=0.3), 32),
    "vit": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", num_classes=4, img_size=16, patch_size=4, depth=4, embed_dim=24, proj_drop_rate=0.2
        ),
        16,
    ),
}


def pair(make, **options):
    """A cohort without and one with, of the same networks."""
    torch.manual_seed(0)
    networks = [make().double() for _ in range(2)]
    return [Cohort(copy.deepcopy(networks), checkpointing=on, **options) for on in (False, True)]


def state(cohort):
    """Weights, statistics and counters."""
    return cohort.state_dict()


def step(cohort, x, stage, seed=1):
    torch.manual_seed(seed)
    plan = plan_at(stage)
    outputs = cohort(x, plan)
    loss = total(DML()(outputs, plan.targets(LABELS, 4).double())) + outputs.stages[1][0].square().mean()
    loss.backward()
    return loss.detach(), torch.rand(3)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_statistics_and_random_numbers_are_those_without(name):
    make, size = NETWORKS[name]
    cohorts = pair(make)
    for stage in (0, 1, cohorts[0].stages):
        shown = [images(size), images(size)]
        found = [step(cohort, x, stage) for cohort, x in zip(cohorts, shown, strict=True)]
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1]), "the global generator moved on as far"
        assert torch.equal(shown[0].grad, shown[1].grad)
        for (name, one), other in zip(cohorts[0].named_parameters(), cohorts[1].parameters(), strict=True):
            assert torch.equal(one.grad, other.grad), name
        for (name, one), other in zip(state(cohorts[0]).items(), state(cohorts[1]).values(), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("name", NETWORKS)
def test_less_is_kept(name):
    """What autograd keeps of a pass, besides weights."""
    make, size = NETWORKS[name]
    kept = []
    for cohort in pair(make):
        weights = {weight.data_ptr() for weight in cohort.parameters()}
        sizes = {}

        def pack(tensor, sizes=sizes, weights=weights):
            if tensor.data_ptr() not in weights:
                sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = cohort(images(size), plan_at(1))
        kept.append(sum(sizes.values()))
        del outputs
    assert kept[1] < 0.75 * kept[0]


@pytest.mark.parametrize("rescale", [False, True])
def test_branches_on_a_trunk(rescale):
    def make():
        torch.manual_seed(0)
        networks = [build("resnet14", num_classes=4).double() for _ in range(3)]
        share_trunk(networks, "stage2", rescale=rescale)
        return networks

    cohorts = [Cohort(make(), checkpointing=on) for on in (False, True)]
    for stage in (1, 3):
        found = [step(cohort, images(16), stage) for cohort in cohorts]
        assert torch.equal(found[0][0], found[1][0])
        for one, other in zip(cohorts[0].parameters(), cohorts[1].parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("loss", [FFL, AFD], ids=lambda loss: loss.__name__)
def test_losses_that_learn_through_stages(loss):
    found = []
    for cohort in pair(NETWORKS["resnet8"][0]):
        torch.manual_seed(0)
        outputs, method = cohort(images(16), plan_at(2)), loss()
        method.setup(outputs)
        total(method.double()(outputs, plan_at(2).targets(LABELS, 4).double())).backward()
        found.append([weight.grad for weight in cohort.parameters()])
    assert all(torch.equal(*each) for each in zip(*found, strict=True))


def test_in_threads():
    found = [step(cohort, images(16), 2) and cohort for cohort in pair(NETWORKS["resnet8"][0], parallel="threads")]
    for one, other in zip(found[0].parameters(), found[1].parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_second_derivatives():
    found = []
    for cohort in pair(NETWORKS["plain chain"][0]):
        x = images(16)
        torch.manual_seed(0)
        plan = plan_at(1)
        loss = total(DML()(cohort.eval()(x, plan), plan.targets(LABELS, 4).double()))
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
        found.append([weight.grad for weight in cohort.parameters()])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-15)


def test_a_peer_is_itself_outside_of_the_cohort():
    plain, saving = pair(NETWORKS["resnet8"][0])
    copies = [copy.deepcopy(saving.peers[0]), pickle.loads(pickle.dumps(saving.peers[0]))]
    step(saving, images(16), 1)
    for network in (saving.peers[0].eval(), *(each.eval() for each in copies)):
        assert _kept_by(network) == _kept_by(plain.peers[0].eval()), "nothing is computed again"
        assert list(network.state_dict()) == list(plain.peers[0].state_dict())
    again = Cohort([copies[0], copies[1]], checkpointing=True)
    assert step(again, images(16), 1)[0].isfinite()


def _kept_by(network):
    """How many tensors autograd keeps of a pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        network(images(16))
    return len(kept)


def test_what_changes_as_it_computes_is_refused():
    def make():
        return nn.Sequential(
            nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3)),
            nn.Flatten(),
            nn.LazyLinear(4),
        )

    network = make()
    network(torch.zeros(1, 3, 8, 8))
    cohort = Cohort([network.double()], stages=["0"], checkpointing=True)
    with pytest.raises(ValueError, match=r"changes its buffer \S+ in the forward pass.*accepted: checkpointing=False"):
        cohort(images(8), MixPlan())


def test_compiled_peers_are_refused():
    with pytest.raises(ValueError, match="accepted: one of them"):
        Cohort([plain_chain()], checkpointing=True, compile=True)
