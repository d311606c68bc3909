"""Stages inside of activation checkpointing: they run again in the backward pass, and are mixed as in the first."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from metamixer.cohort.cohort import Cohort
from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import total
from metamixer.losses import AFD, DML, FFL, MCL

PARTNER = torch.tensor([1, 2, 3, 4, 5, 0])
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
modes = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
once = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # PyTorch's, for images


def plan_at(stage, lam=0.3):
    return MixPlan((Blend(torch.tensor(lam, dtype=torch.float64), PARTNER, stage),))


def images(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 8, 8, generator=draw, dtype=torch.float64).requires_grad_()


class Network(nn.Module):
    stage_paths = ("a", "b")

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh())
        self.b = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Dropout(0.3), nn.Tanh())
        self.head = nn.Linear(5, 4)
        self.double()
        self.how, self.whole = None, False

    def forward(self, x):
        if self.how is None:
            return self.body(x)
        if self.whole:
            return checkpoint(self.body, x, use_reentrant=self.how)
        for part in (self.a, self.b):
            x = checkpoint(part, x, use_reentrant=self.how)
        return self.head(x.mean((2, 3)))

    def body(self, x):
        return self.head(self.b(self.a(x)).mean((2, 3)))


def cohort(how=None, whole=False):
    peers = [Network(0), Network(1)]
    for peer in peers:
        peer.how, peer.whole = how, whole
    return Cohort(peers)


def objective(peers, plan, x):
    torch.manual_seed(0)  # of dropout
    return total(DML()(peers(x, plan), plan.targets(LABELS, 4).double()))


def gradients(module):
    return [weight.grad for weight in module.parameters()]


@once
@modes
@pytest.mark.parametrize("whole", [False, True], ids=["each stage", "all at once"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_gradients_through_checkpointing_are_those_without(reentrant, whole, stage):
    plain, saving = cohort(), cohort(reentrant, whole)
    for each in (plain, saving):
        x = images()
        objective(each, plan_at(stage), x).backward()
        each.images = x.grad
    assert all(torch.equal(*pair) for pair in zip(gradients(plain), gradients(saving), strict=True))
    assert torch.equal(plain.images, saving.images)


@modes
def test_passes_that_wait_for_one_backward_keep_their_plans(reentrant):
    """Two plans, a pass without mixing and peers that run alone in between, each before and after the others."""

    def everything(peers):
        alone = peers.peers[0]
        found = alone(images(3)).square().sum()
        found = found + objective(peers, plan_at(1), images(0)) + alone(images(4)).sin().sum()
        found = found + objective(peers, plan_at(2, 0.8), images(1)) + objective(peers, MixPlan(), images(2))
        return found + alone(images(5)).square().sum()

    plain, saving = cohort(), cohort(reentrant)
    for each in (plain, saving):
        torch.manual_seed(0)
        everything(each).backward()
        everything(each).backward()  # a second time: nothing is left of the first
    torch.testing.assert_close(gradients(saving), gradients(plain), rtol=1e-12, atol=1e-14)


def test_second_derivatives_through_checkpointing():
    found = {}
    for how in (None, False):
        peers, x = cohort(how), images()
        weight = peers.peers[0].a[0].weight
        (gradient,) = torch.autograd.grad(objective(peers, plan_at(1), x), weight, create_graph=True)
        gradient.square().sum().backward()
        found[how] = gradients(peers.peers[0])
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(found[None], found[False], strict=True))


@once
@pytest.mark.parametrize("how", [(True, True), (False, True)], ids=["in reentrant", "in non-reentrant"])
def test_checkpointing_inside_of_checkpointing_is_right_or_refused(how):
    class Nested(Network):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=how[0])

    peers = Cohort([Nested(0), Nested(1)])
    for peer in peers.peers:
        peer.how = how[1]
    with pytest.raises(RuntimeError, match="accepted: use_reentrant=False"):
        objective(peers, plan_at(1), images()).backward()


@once
@modes
@pytest.mark.parametrize("loss", [FFL, AFD, MCL], ids=lambda loss: loss.__name__)
def test_losses_that_learn_through_stages(loss, reentrant):
    """The reentrant kind computes stages without a graph, so what a loss would learn from them would be lost."""
    found = {}
    for how in (None, reentrant):
        peers = cohort(how, whole=True)
        torch.manual_seed(0)
        outputs = peers(images(), plan_at(1))
        torch.manual_seed(0)
        method = loss()
        if how:
            with pytest.raises(ValueError, match=r"accepted: no torch.no_grad .* with use_reentrant=False"):
                (getattr(method, "setup", lambda _: None)(outputs), method(outputs, plan_at(1).targets(LABELS, 4)))
            return
        method.setup(outputs)
        method.double()
        torch.manual_seed(0)
        total(method(outputs, plan_at(1).targets(LABELS, 4).double())).backward()
        found[how] = gradients(peers)
    assert all(torch.equal(*pair) for pair in zip(found[None], found[False], strict=True))


@once
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_the_checkpointing_of_timm(name):
    """It calls the blocks of ResNets and MobileNets one by one, and never the stages that hold them."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8} if name.startswith("vit") else {}
    plain = Cohort([timm.create_model(name, num_classes=4, **options).double()]).eval()
    saving = copy.deepcopy(plain)
    saving.peers[0].set_grad_checkpointing()
    x = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    for stage in range(plain.stages + 1):
        for each in (plain, saving):
            each.zero_grad()
            outputs = each(x, plan_at(stage))
            (outputs.logits.square().sum() + outputs.stages[0][0].square().sum()).backward()
        torch.testing.assert_close(gradients(saving), gradients(plain))
