"""Branches on a trunk against networks of their own that have the same weights, one after the other and by hand."""

import copy
import functools
import pickle

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk, trunk_of
from metamixer.cohort.stages import find_stages
from metamixer.core.plan import Blend, MixPlan, Paste, PerPeer
from metamixer.losses import DML, ONE
from metamixer.models import build, resnet8
from metamixer.training.optimizer import Optim
from metamixer.training.trainer import Trainer
from tests import toys

PARTNER = torch.tensor([2, 0, 1, 3])
LAM = torch.tensor(0.3, dtype=torch.float64)

BUILT = {  # name: image size, where the trunk ends, a module that runs inside of a shared one, options
    "resnet8": (8, "stage2", "stage1.0.conv1", {}),
    "timm:resnet18": (16, "layer2", "layer1.0.conv1", {"channels": (8, 8, 16, 16)}),
    "torchvision:mobilenet_v2": (16, "features.6", "features.3.conv.0.0", {"width_mult": 0.25, "dropout": 0.0}),
    "timm:vit_tiny_patch16_224": (16, "blocks.1", "blocks.0.attn", {"patch_size": 4, "embed_dim": 8, "depth": 4}),
}
every_network = pytest.mark.parametrize("name", BUILT)


def draw(size=8, seed=0, batch=4):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(name, count, seed=0):
    size, _, _, options = BUILT[name]
    if "vit" in name:
        options = {**options, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [build(name, num_classes=5, image_size=(size, size), **options).double() for _ in range(count)]


def branches(name, count=3, **settings):
    """Networks on a trunk, and separate ones of the same weights."""
    networks = made(name, count)
    share_trunk(networks, BUILT[name][1], **settings)
    return networks, apart(networks, made(name, count, seed=1))


def apart(networks, others):
    for network, other in zip(networks, others, strict=True):
        other.load_state_dict(network.state_dict())
    return others


def small(seed, middle=None):
    """Two strided convolutions: the stages end at "1" and "3"."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.BatchNorm2d(4),
            middle or nn.ReLU(inplace=True),
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True)),
            nn.Flatten(),
            nn.Linear(6, 5),
        ).double()


def compare(networks, others, plan, images, stages=None, rescale=1, views=None):
    """All outputs, and the gradients of a random function of the logits: the trunk's are the sum of the branches'."""
    one, many = Cohort(networks, stages=stages), Cohort(others, stages=stages)
    found, wanted = one(views or images, plan), many(views or images, plan)
    torch.testing.assert_close(found.logits, wanted.logits)
    assert found.stages[0]
    for mine, theirs in zip((*found.stages, found.features), (*wanted.stages, wanted.features), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b)
    weights = torch.randn(found.logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (found.logits * weights).sum().backward()
    (wanted.logits * weights).sum().backward()
    gradients = [dict(other.named_parameters()) for other in others]
    common = 0
    for index, network in enumerate(networks):
        for name, weight in network.named_parameters():
            shared = [other[name].grad for other, own in zip(gradients, networks, strict=True)
                      if any(weight is each for each in own.parameters())]  # fmt: skip
            common += len(shared) > 1
            expected = sum(shared) / rescale if len(shared) > 1 else gradients[index][name].grad
            torch.testing.assert_close(weight.grad, expected, msg=lambda message, name=name: f"{name}: {message}")
    assert common


@every_network
def test_branches_are_networks_of_the_same_weights(name):
    networks, others = branches(name)
    compare(networks, others, None, draw(BUILT[name][0]))


@every_network
def test_rescaling_divides_the_gradient_of_the_trunk_alone(name):
    networks, others = branches(name, rescale=True)
    size, path, *_ = BUILT[name]
    if "vit" in name:  # a position embedding is added inside of the trunk, so this holds for it as well
        assert networks[0].pos_embed is networks[2].pos_embed
    compare(networks, others, None, draw(size), rescale=3)
    assert trunk_of(networks[1])[1] == path


@every_network
@pytest.mark.parametrize("rescale", [False, True])
def test_mixing_at_every_stage(name, rescale):
    """Also at two stages inside of the trunk at once, and at the images."""
    stages = find_stages(made(name, 1)[0])
    for stage in (0, 1, stages.index(BUILT[name][1]) + 1, len(stages)):
        networks, others = branches(name, 2, rescale=rescale)
        plan = MixPlan((Blend(LAM, PARTNER, stage), Blend(LAM, PARTNER.flip(0), 1), Blend(LAM, PARTNER, 0)))
        compare(networks, others, plan, draw(BUILT[name][0]), rescale=2 if rescale else 1)


@every_network
def test_the_trunk_is_computed_once(name):
    size, path, inside, _ = BUILT[name]
    networks, _ = branches(name)
    calls = []
    for network in {id(each.get_submodule(inside)): each for each in networks}.values():
        network.get_submodule(inside).register_forward_hook(lambda *_: calls.append("inside"))
    cohort = Cohort(networks)
    assert cohort.shared == find_stages(networks[0]).index(path) + 1
    cohort(draw(size))  # the first pass also looks where the batch is
    calls.clear()
    cohort(draw(size))
    assert len(calls) == 1
    for network in networks:  # alone a branch computes everything
        network(draw(size))
    assert len(calls) == 4
    cohort(draw(size)).run(2, draw(size))
    assert len(calls) == 6


def test_statistics_move_once():
    networks, others = branches("resnet8")
    Cohort(networks)(draw())
    others[0](draw())
    assert torch.equal(networks[2].stem[1].running_mean, others[0].stem[1].running_mean)
    assert networks[2].stem[1].num_batches_tracked == 1


class Times(nn.Module):
    """Changes its input in place, each branch otherwise."""

    def __init__(self, factor):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x):
        return x.mul_(self.factor)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_branch_that_starts_in_place_does_not_change_what_the_others_get(rescale):
    networks = [small(seed, Times(2.0 + seed)) for seed in range(3)]
    share_trunk(networks, "1", rescale=rescale)
    others = apart(networks, [small(9, Times(0.0)) for _ in networks])
    compare(networks, others, None, draw(7), ["0", "3"], rescale=3 if rescale else 1)


class Reused(nn.Module):
    """One activation in three places, the last of them above the trunk; registered before what runs before it."""

    stage_paths = ("low", "high")

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.act = nn.ReLU()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.low = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), self.act, nn.BatchNorm2d(4))
        self.high = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.low(self.act(self.stem(x)))
        return self.head(self.pool(self.act(self.high(self.act(x)))).flatten(1))


def test_a_module_that_is_called_in_several_places():
    networks = [Reused().double() for _ in range(3)]
    share_trunk(networks, "low")
    others = apart(networks, [Reused().double() for _ in networks])
    for stage in range(3):
        for network in (*networks, *others):
            network.zero_grad()
        compare(networks, others, MixPlan((Blend(LAM, PARTNER, stage),)), draw())


class Lists(nn.Module):
    """Stages in lists, which are never called: the stage ends at the last entry."""

    stage_paths = ("parts.0.1", "parts.1.1")

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)]),
                nn.ModuleList([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]),
            ]
        )
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        for part in self.parts:
            for layer in part:
                x = layer(x)
        return self.head(self.norm(x).mean((2, 3)))


def test_modules_in_lists():
    networks = [Lists().double() for _ in range(2)]
    share_trunk(networks, "parts.1.1")
    compare(networks, apart(networks, [Lists().double() for _ in networks]), None, draw())
    assert networks[0].parts[0][1].num_batches_tracked == 1  # a list that is mistaken for a module runs twice
    assert networks[0].norm is not networks[1].norm
    with pytest.raises(ValueError, match=r"'parts\.1': a ModuleList is never called; expected its last entry"):
        share_trunk([Lists(), Lists()], "parts.1")


@pytest.mark.parametrize("rescale", [False, True])
def test_views_of_their_own_run_through_the_trunk_each(rescale):
    networks, others = branches("resnet8", rescale=rescale)
    views = [draw(seed=seed) for seed in (0, 1, 1)]
    compare(networks, others, MixPlan((Blend(LAM, PARTNER, 1),)), None, rescale=3 if rescale else 1, views=views)


def test_boxes_of_their_own_run_through_the_trunk_each():
    networks, others = branches("resnet8", 2)
    boxes = tuple(
        Paste(torch.tensor([at, at]), torch.tensor([at + 3, at + 3]), (8, 8), partner=PARTNER) for at in (0, 4)
    )
    compare(networks, others, MixPlan((PerPeer(boxes),)), draw())


def test_a_stage_for_each_peer_is_refused_inside_of_the_trunk_and_taken_above_it():
    networks, others = branches("resnet8", 2)
    cohort = Cohort(networks)
    for stages in ((1, 2), (0, 1), (2, 3), (0.4, 0.7)):
        with pytest.raises(ValueError, match=r"mixer\.stage_draws=1"):
            cohort(draw(), MixPlan((Blend(LAM, PARTNER, stages),)))
    for each in (*networks, *others):
        each.zero_grad()
    networks, others = made("resnet8", 2), None
    share_trunk(networks, "stage1")
    others = apart(networks, made("resnet8", 2, seed=1))
    compare(networks, others, MixPlan((Blend(LAM, PARTNER, (2, 3)),)), draw())


def test_branches_beside_a_network_of_its_own():
    """Not all peers are on the trunk, so it is no shared stage; it is still computed once and mixed in one way."""
    networks, others = made("resnet8", 3), made("resnet8", 3, seed=1)
    share_trunk(networks[:2], "stage2")
    apart(networks, others)
    plan = MixPlan((Blend(LAM, PARTNER, (1, 1, 3)),))
    compare(networks, others, plan, draw())
    assert networks[1].stem[1].num_batches_tracked == 1
    cohort = Cohort(networks)
    assert cohort.shared == 0
    with pytest.raises(ValueError, match=r"mixer\.stage_draws=1"):
        cohort(draw(), MixPlan((Blend(LAM, PARTNER, (1, 2, 2)),)))


def test_two_trunks():
    networks, others = made("resnet8", 4), made("resnet8", 4, seed=1)
    share_trunk(networks[:2], "stage2")
    share_trunk(networks[2:], "stage1")
    apart(networks, others)
    compare(networks, others, MixPlan((Blend(LAM, PARTNER, (2, 2, 1, 1)),)), draw())
    assert Cohort(networks).shared == 0


def test_one_branch_after_the_other_reaches_the_trunk():
    """With a graph for one branch alone, the others must not pass it a trunk without one."""
    networks, others = branches("resnet8")
    cohort = Cohort(networks)
    for turn in range(3):
        cohort.zero_grad()
        with cohort.learning(turn):
            cohort(draw()).logits.sum().backward()
        others[turn](draw()).sum().backward()
        torch.testing.assert_close(networks[0].stem[0].weight.grad, others[turn].stem[0].weight.grad)


def test_a_branch_is_a_plain_network():
    networks, _ = branches("resnet8")
    cohort = Cohort(networks)
    wanted = cohort.eval()(draw()).logits[1]
    plain = made("resnet8", 1, seed=4)[0]
    assert list(networks[1].state_dict()) == list(plain.state_dict())
    plain.load_state_dict(networks[1].state_dict())
    twin = copy.deepcopy(networks[1])
    read = pickle.loads(pickle.dumps(networks[1]))
    for network in (plain.eval(), twin, read, networks[1]):
        assert list(network.state_dict()) == list(plain.state_dict())
        torch.testing.assert_close(network(draw()), wanted)
    with torch.no_grad():
        twin.stem[0].weight.zero_()  # has weights of its own
    torch.testing.assert_close(cohort(draw()).logits[1], wanted)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cohort: pickle.loads(pickle.dumps(cohort))])
def test_a_copied_cohort_has_a_trunk_of_its_own(copied):
    networks, _ = branches("resnet8", rescale=True)
    cohort = Cohort(networks)
    twin = copied(cohort)
    plan = MixPlan((Blend(LAM, PARTNER, 1),))
    torch.testing.assert_close(twin(draw(), plan).logits, cohort(draw(), plan).logits)
    assert twin.peers[0].stem is twin.peers[2].stem is not cohort.peers[0].stem
    assert twin.peers[0].stem[1].num_batches_tracked == 1


def test_a_trunk_is_saved_once_and_loaded(tmp_path):
    cohort, other = (Cohort(branches("resnet8")[0]) for _ in range(2))
    with torch.no_grad():
        for weight in other.parameters():
            weight.normal_()
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_model(cohort, str(path))
    with safetensors.safe_open(path, "pt") as file:
        stems = [name for name in file.keys() if name.endswith("stem.0.weight")]  # noqa: SIM118
        heads = [name for name in file.keys() if name.endswith("classifier.weight")]  # noqa: SIM118
    assert (len(stems), len(heads)) == (1, 3)
    missing, unexpected = safetensors.torch.load_model(other, path)
    assert not missing
    assert not unexpected
    torch.testing.assert_close(other.eval()(draw()).logits, cohort.eval()(draw()).logits, rtol=0, atol=0)


def test_shadows_share_a_trunk_of_theirs():
    networks, _ = branches("resnet8", 2)
    cohort = Cohort(networks, shadows=True)
    before = networks[0].stem[0].weight.detach().clone()
    assert cohort.shared == 2
    assert cohort.peers[2].stem is cohort.peers[3].stem is not networks[0].stem
    with torch.no_grad():
        for weight in networks[0].parameters():
            weight.add_(1)
    cohort.update_shadows(0.75)
    torch.testing.assert_close(cohort.peers[3].stem[0].weight, before + 0.25)  # once, not once for each branch
    found = cohort(draw(), MixPlan((Blend(LAM, PARTNER, 1),)))
    grads = torch.autograd.grad(found.logits[2:].sum(), networks[0].stem[0].weight, allow_unused=True)
    assert grads[0] is None or not grads[0].any()
    assert cohort.peers[2].stem[1].num_batches_tracked == 0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_weight_is_in_one_group(name):
    networks, _ = branches("resnet8")
    cohort = Cohort(networks)
    groups = Optim(name=name).build(cohort, DML()).param_groups
    found = [id(weight) for group in groups for weight in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(weight) for weight in cohort.parameters()}
    alone = sum(weight.numel() for weight in networks[0].parameters())
    assert sum(weight.numel() for weight in groups[0]["params"]) == alone
    above = [*networks[1].stage3.parameters(), *networks[1].classifier.parameters()]
    assert [id(weight) for weight in groups[1]["params"]] == [id(weight) for weight in above]


def test_branches_do_not_run_side_by_side():
    networks, _ = branches("resnet8", 2)
    with pytest.raises(ValueError, match=r"threads.*expected parallel='none'"):
        Cohort(networks, parallel="threads")


def test_a_failure_leaves_the_trunk_as_it_was():
    networks, _ = branches("resnet8", 2)
    cohort = Cohort(networks).eval()
    wanted = cohort(draw()).logits
    handle = networks[1].stage3.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cohort(draw(seed=1))
    handle.remove()
    torch.testing.assert_close(networks[0](draw()), wanted[0])
    torch.testing.assert_close(cohort(draw()).logits, wanted)


def test_what_cannot_be_a_trunk():
    two = [resnet8(5), resnet8(5)]
    with pytest.raises(ValueError, match="two networks"):
        share_trunk(two[:1], "stage1")
    with pytest.raises(ValueError, match="one architecture"):
        share_trunk([resnet8(5), small(0)], "stage1")
    with pytest.raises(ValueError, match="'layer1'"):
        share_trunk(two, "layer1")
    with pytest.raises(ValueError, match="the network itself"):
        share_trunk(two, "")
    assert trunk_of(two[0]) is None
    share_trunk(two, "stage1")
    with pytest.raises(ValueError, match="already"):
        share_trunk([two[0], resnet8(5)], "stage2")


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Paired(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = Pair()
        self.head = nn.Linear(2, 5)

    def forward(self, x):
        return self.head(self.pair(x)[0].mean((2, 3))[:, :2])


def test_a_trunk_has_to_end_in_a_tensor():
    networks = [Paired(), Paired()]
    share_trunk(networks, "pair")
    with pytest.raises(ValueError, match=r"the trunk ends in a tuple \(pair\)"):
        Cohort(networks, stages=["pair"])(draw().float())


def test_stages_that_differ_inside_of_the_trunk_are_refused():
    networks, _ = branches("resnet8", 2)
    with pytest.raises(ValueError, match="same stages in it"):
        Cohort(networks, stages=[["stage1", "stage3"], ["stage2", "stage3"]])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_branches(monkeypatch):
    networks = [small(seed) for seed in range(2)]
    share_trunk(networks, "2", rescale=True)
    others = apart(networks, [small(9), small(9)])
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    compiled, reference = Cohort(networks, ["2", "3"], compile=True), Cohort(others, ["2", "3"])
    for stage in (1, 2):
        plan = MixPlan((Blend(LAM, PARTNER, stage),))
        found, wanted = compiled(draw(7), plan), reference(draw(7), plan)
        torch.testing.assert_close(found.logits, wanted.logits)
        compiled.zero_grad()
        reference.zero_grad()
        found.logits.square().sum().backward()
        wanted.logits.square().sum().backward()
        mean = sum(other[0].weight.grad for other in others) / 2
        torch.testing.assert_close(networks[0][0].weight.grad, mean)
    assert networks[0][1].num_batches_tracked == 2


def test_a_trainer_with_branches_and_a_gate_resumes(tmp_path):
    """The trunk in one group, the gate built before the optimizer, and all of it in the checkpoint."""

    def trainer(folder, epochs):
        networks = [toys.network(seed) for seed in range(3)]
        share_trunk(networks, "0")
        cohort = Cohort(networks, stages=["0", "1"])
        return Trainer(cohort, toys.MetaMixer(), ONE(), epochs=epochs, accelerator="cpu", folder=folder)

    whole = trainer(tmp_path / "whole", 3)
    whole.fit(toys.loader(), toys.validation())
    broken = trainer(tmp_path / "broken", 3)
    with pytest.raises(ConnectionError):
        broken.fit(toys.StopAt(toys.loader(), 7), toys.validation())
    again = trainer(tmp_path / "broken", 3)
    again.fit(toys.loader(), toys.validation(), resume=True)
    for name, value in whole.cohort.state_dict().items():
        assert torch.equal(again.cohort.state_dict()[name], value), name
    assert list(whole.loss.state_dict())
    for name, value in whole.loss.state_dict().items():
        assert torch.equal(again.loss.state_dict()[name], value), name
    images = toys.validation()[0].images
    whole.cohort.eval()
    assert F.cross_entropy(whole.cohort(images).logits[0], toys.validation()[0].labels).isfinite()
