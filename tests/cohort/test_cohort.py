"""Cohorts against networks that are cut open by hand, and hooks that survive what PyTorch does to modules."""

import copy
import functools
import io
import pickle
import time
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.stages import StagesNotFound
from metamixer.config.registry import MIXERS
from metamixer.core.plan import Blend, MixPlan, Paste
from metamixer.core.types import Outputs
from metamixer.mixers import ManifoldMixup, MetaMixer
from metamixer.models import resnet8

PARTNER = torch.tensor([2, 0, 1, 3])
LAM = torch.tensor(0.3, dtype=torch.float64)
EACH = torch.tensor([0.1, 0.9, 0.5, 0.25], dtype=torch.float64)


def blending(stage, lam=LAM):
    return MixPlan((Blend(lam, PARTNER, stage),))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def resnet(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return resnet8(num_classes=5, in_channels=2).double()


def small(seed=0, widths=(4, 6, 8), classes=5, inplace=False):
    """A stem and one strided convolution per stage: paths "1", "3", ... are the ends of the stages."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers, c_in = [], 2
        for width in widths:
            layers += [nn.Conv2d(c_in, width, 3, stride=2, padding=1), nn.ReLU(inplace)]
            c_in = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes)).double()


SMALL = ["1", "3", "5"]


def mix_by_hand(x, lam, partner):
    lam = lam if lam.ndim == 0 else lam.view(-1, *[1] * (x.ndim - 1))
    return lam * x + (1 - lam) * x[partner]


def cut_open(network, x, stage, lam, partner=PARTNER):
    """The parts of a ResNet one after the other, with the mixture after part number ``stage``."""
    seen = []
    for number, part in enumerate(
        [nn.Identity(), nn.Sequential(network.stem, network.stage1), network.stage2, network.stage3]
    ):
        x = part(x)
        if number == stage:
            x = mix_by_hand(x, lam, partner)
        seen.append(x)
    return network.classifier(x.mean((2, 3))), seen[1:]


def gradients(network):
    return {name: p.grad for name, p in network.named_parameters()}


@pytest.mark.parametrize("lam", [LAM, EACH], ids=["batch", "sample"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_network_cut_open_at_each_stage(stage, lam):
    networks = [resnet(0), resnet(1)]
    by_hand = copy.deepcopy(networks)
    images, weight = draw(4, 2, 8, 8), draw(2, 4, 5, seed=1)
    outputs = Cohort(networks)(images, blending(stage, lam))
    (outputs.logits * weight).sum().backward()
    for peer, network in enumerate(by_hand):
        logits, seen = cut_open(network, images, stage, lam)
        (logits * weight[peer]).sum().backward()
        torch.testing.assert_close(outputs.logits[peer], logits)
        assert len(outputs.stages[peer]) == 3
        for found, wanted in zip(outputs.stages[peer], seen, strict=True):
            torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(gradients(networks[peer]), gradients(network))
        torch.testing.assert_close(dict(networks[peer].named_buffers()), dict(network.named_buffers()))


@pytest.mark.parametrize("each", [False, True])
def test_metamixer_by_hand(each):
    """A box of the companions pasted pixel by pixel, then a blend at stage 2."""
    networks = [resnet(0), resnet(1)]
    by_hand = copy.deepcopy(networks)
    images, companions = draw(4, 2, 8, 8), draw(4, 2, 8, 8, seed=2)
    low, high = torch.tensor([[1, 2], [0, 0], [3, 3], [5, 0]]), torch.tensor([[4, 7], [8, 8], [3, 3], [8, 2]])
    if not each:
        low, high = low[0], high[0]
    plan = MixPlan((Paste(low, high, (8, 8), source=companions),)) + blending(2)
    logits = Cohort(networks)(images, plan).logits
    pasted = images.clone()
    for b in range(4):
        (top, left), (bottom, right) = (low, high) if not each else (low[b], high[b])
        for row in range(top, bottom):
            for column in range(left, right):
                pasted[b, :, row, column] = companions[b, :, row, column]
    for peer, network in enumerate(by_hand):
        torch.testing.assert_close(logits[peer], cut_open(network, pasted, 2, LAM)[0])


def test_two_operations_at_one_stage_and_one_later():
    network = small()
    by_hand = copy.deepcopy(network)
    other = torch.tensor([1, 2, 3, 0])
    plan = blending(1) + MixPlan((Blend(EACH, other, 1), Blend(LAM, other, 3)))
    x = draw(4, 2, 8, 8)
    logits = Cohort([network], stages=SMALL)(x, plan).logits[0]
    x = mix_by_hand(mix_by_hand(by_hand[:2](x), LAM, PARTNER), EACH, other)
    torch.testing.assert_close(logits, by_hand[6:](mix_by_hand(by_hand[2:6](x), LAM, other)))


def test_a_network_whose_next_layer_works_in_place():
    """The stage ends at the convolution; the activation after it overwrites the mixture."""
    network = small(inplace=True)
    by_hand = copy.deepcopy(network)
    x = draw(4, 2, 8, 8)
    Cohort([network], stages=["0", "2"])(x, blending(1)).logits.square().sum().backward()
    by_hand[1:](mix_by_hand(by_hand[0](x), LAM, PARTNER)).square().sum().backward()
    torch.testing.assert_close(gradients(network), gradients(by_hand))


def test_peers_share_lambda_and_partners_and_may_differ_in_stage():
    networks = [small(0), small(1)]
    by_hand = copy.deepcopy(networks)
    x = draw(4, 2, 8, 8)
    logits = Cohort(networks, stages=SMALL)(x, blending((1, 2))).logits
    for peer, (network, end) in enumerate(zip(by_hand, (2, 4), strict=True)):
        torch.testing.assert_close(logits[peer], network[end:](mix_by_hand(network[:end](x), LAM, PARTNER)))


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.6, 0.99])
def test_relative_depths(depth):
    networks = [small(0), small(1)]
    by_hand = copy.deepcopy(networks)
    x = draw(4, 2, 8, 8)
    logits = Cohort(networks, stages=SMALL)(x, blending(depth)).logits
    end = {0.0: 0, 0.3: 0, 0.6: 2, 0.99: 4}[depth]
    for peer, network in enumerate(by_hand):
        torch.testing.assert_close(logits[peer], network[end:](mix_by_hand(network[:end](x), LAM, PARTNER)))


def test_peers_of_different_depth_are_aligned():
    """Stages 1 and 2 of two are stages 2 and 4 of four, and 2 and 3 of three (1.5 rounds to even)."""
    networks = [small(0, (4, 4)), small(1, (4, 4, 6, 6)), small(2, (4, 5, 6))]
    by_hand = copy.deepcopy(networks)
    cohort = Cohort(networks, stages=[["1", "3"], ["1", "3", "5", "7"], SMALL])
    assert cohort.stages == 2
    assert cohort.stage_paths == (("1", "3"), ("3", "7"), ("3", "5"))
    x = draw(4, 2, 16, 16)
    outputs = cohort(x, blending(1))
    assert [len(stages) for stages in outputs.stages] == [2, 2, 2]
    for peer, end in enumerate((2, 4, 4)):
        network = by_hand[peer]
        mixed = mix_by_hand(network[:end](x), LAM, PARTNER)
        torch.testing.assert_close(outputs.stages[peer][0], mixed)
        torch.testing.assert_close(outputs.logits[peer], network[end:](mixed))


def test_without_a_plan_nothing_is_mixed():
    networks = [small(0), small(1)]
    by_hand = copy.deepcopy(networks)
    x = draw(4, 2, 8, 8)
    for outputs in (Cohort(networks, stages=SMALL)(x), Cohort(networks, stages=SMALL)(x, MixPlan())):
        assert outputs.peers == 2
        assert torch.equal(outputs.logits, torch.stack([network(x) for network in by_hand]))


def test_a_frozen_member():
    cohort = Cohort([resnet(0), resnet(1)], frozen=[1])
    teacher = cohort.peers[1]
    before = copy.deepcopy(teacher.state_dict())
    for mode in (True, False, True):
        assert cohort.train(mode) is cohort
        assert [peer.training for peer in cohort.peers] == [mode, False]
        assert not any(module.training for module in teacher.modules())
    images = draw(4, 2, 8, 8).requires_grad_()  # as in adversarial training: no graph through a frozen member even so
    outputs = cohort(images, blending(1))
    reference = resnet(1).eval()
    torch.testing.assert_close(outputs.logits[1], cut_open(reference, images, 1, LAM)[0])  # it sees the same mixture
    outputs.logits.square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in cohort.peers[0].parameters())
    assert not any(stage.requires_grad for stage in outputs.stages[1])
    assert all(stage.requires_grad for stage in outputs.stages[0])
    torch.testing.assert_close(teacher.state_dict(), before, rtol=0, atol=0)  # statistics of batch norm as well


def test_a_member_is_frozen_from_the_start():
    teacher = resnet(1).train()
    cohort = Cohort([resnet(0), teacher], frozen=[1])
    assert cohort.training
    assert not teacher.training


def test_no_gradients_when_the_caller_wants_none():
    with torch.no_grad():
        assert not Cohort([small()], stages=SMALL)(draw(4, 2, 8, 8), blending(1)).logits.requires_grad


def test_state_dicts_stay_as_they_were():
    keys = [list(small(seed).state_dict()) for seed in (0, 1)]
    cohort = Cohort([small(0), small(1)], stages=SMALL)
    assert [list(peer.state_dict()) for peer in cohort.peers] == keys
    assert list(cohort.state_dict()) == [f"peers.{peer}.{key}" for peer in (0, 1) for key in keys[peer]]
    alone = small(5)
    alone.load_state_dict(cohort.peers[0].state_dict())
    assert torch.equal(alone(draw(4, 2, 8, 8)), cohort(draw(4, 2, 8, 8)).logits[0])


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, through_pickle, through_torch_save]


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_copied_cohort_mixes_by_itself(make_copy):
    cohort = Cohort([small(0), small(1)], stages=SMALL)
    x = draw(4, 2, 8, 8)
    wanted = cohort(x, blending(2)).logits
    copied = make_copy(cohort)
    assert torch.equal(copied(x, blending(2)).logits, wanted)
    assert not torch.equal(copied(x).logits, wanted)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(cohort(x, blending(2)).logits, wanted)  # and so does the original
    assert [len(stages) for stages in copied(x, blending(2)).stages] == [3, 3]


@pytest.mark.parametrize("make_copy", COPIES)
def test_a_copied_peer_is_inert(make_copy):
    cohort = Cohort([small(0), small(1)], stages=SMALL)
    x = draw(4, 2, 8, 8)
    plain = small(0)(x)
    alone = make_copy(cohort.peers[0])
    called = []

    def run_the_copy(module, args):  # while the plan of the original runs
        called.append(alone(x))

    with cohort.peers[0][4].register_forward_pre_hook(run_the_copy):
        outputs = cohort(x, blending(1))
    assert torch.equal(called[0], plain)
    assert not torch.equal(outputs.logits[0], plain)
    assert torch.equal(alone(x), plain)
    assert torch.equal(cohort.peers[0](x), plain)


def test_a_copied_peer_may_join_another_cohort():
    """The mixing points of its first life stay behind and do nothing."""
    first = Cohort([small(0), small(1)], stages=SMALL)
    x = draw(4, 2, 8, 8)
    wanted = first(x, blending(2)).logits[0]
    for network in (copy.deepcopy(first.peers[0]), first.peers[0]):
        assert torch.equal(Cohort([network], stages=SMALL)(x, blending(2)).logits[0], wanted)
    assert torch.equal(first(x, blending(2)).logits[0], wanted)


def test_a_cohort_read_in_a_new_process_keeps_its_mixing_points(monkeypatch):
    """There hooks are numbered from 0 again, and a new one must not take the place of one that was pickled."""
    monkeypatch.setattr("torch.utils.hooks.RemovableHandle.next_id", 0)
    cohort = Cohort([small(0), small(1)], stages=SMALL)
    x = draw(4, 2, 8, 8)
    wanted = cohort(x, blending(2)).logits
    pickled = pickle.dumps(cohort)
    monkeypatch.setattr("torch.utils.hooks.RemovableHandle.next_id", 0)
    read = pickle.loads(pickled)
    for peer in read.peers:
        for path in SMALL:
            peer.get_submodule(path).register_forward_hook(lambda *_: None)
    assert torch.equal(read(x, blending(2)).logits, wanted)


def compiles(test):
    """Under strict filters torch.compile stumbles over warnings that it gives itself and means to hide."""
    for warning in ("The .grad attribute of a Tensor:UserWarning", ".*should not be instantiated:DeprecationWarning"):
        test = pytest.mark.filterwarnings(f"ignore:{warning}")(test)
    return test


@compiles
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_compiled(backend):
    """One compiled cohort, many plans: a graph that forgot the hooks would mix by none or by the first."""
    torch._dynamo.reset()
    networks = [small(0, inplace=True), small(1, inplace=True)]
    reference = Cohort(copy.deepcopy(networks), stages=SMALL)
    compiled = torch.compile(Cohort(networks, stages=SMALL), backend=backend)
    x = draw(4, 2, 8, 8)
    box = Paste(torch.tensor([1, 1]), torch.tensor([5, 4]), (8, 8), partner=PARTNER)
    plans = [MixPlan(), blending(1), blending(1, LAM / 2), blending(2), blending(0), blending(3), blending(1)]
    for plan in [*plans, MixPlan((box,)) + blending(2), blending(2)]:
        found, wanted = compiled(x, plan), reference(x, plan)
        torch.testing.assert_close(found.logits, wanted.logits)
        torch.testing.assert_close(found.stages, wanted.stages)
        for cohort, outputs in ((compiled, found), (reference, wanted)):
            cohort.zero_grad()
            outputs.logits.square().sum().backward()
        torch.testing.assert_close(gradients(networks[0]), gradients(reference.peers[0]))


@compiles
def test_compiled_peers():
    """``peer.compile()`` in place, after the hooks were installed."""
    torch._dynamo.reset()
    reference = Cohort([small(0), small(1)], stages=SMALL)
    cohort = copy.deepcopy(reference)
    for peer in cohort.peers:
        peer.compile(backend="eager")
    x = draw(4, 2, 8, 8)
    for plan in [MixPlan(), blending(1), blending(1, LAM / 2), blending(2), blending(1, EACH)]:
        torch.testing.assert_close(cohort(x, plan).logits, reference(x, plan).logits)
    torch.testing.assert_close(cohort.peers[0](x), reference.peers[0](x))


@compiles
@pytest.mark.parametrize("mixer", MIXERS.values(), ids=lambda mixer: mixer.__name__)
def test_compile_with_every_mixer(mixer, monkeypatch):
    """Random plans: equal to eager, and no more graphs than stages, however many plans there were."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    reference = Cohort([small(0), small(1, widths=(5, 6, 7))], stages=SMALL)
    compiled = Cohort(copy.deepcopy(list(reference.peers)), stages=SMALL, compile=True)
    labels = torch.tensor([0, 1, 0, 1])
    plan_of = mixer()
    for seed in range(24):
        x = draw(4, 2, 8, 8, seed=seed)
        companions = draw(4, 2, 8, 8, seed=seed + 100)
        plan = plan_of(x, labels, companions=companions, generator=torch.Generator().manual_seed(seed))
        found, wanted = compiled(x, plan), reference(x, plan)
        torch.testing.assert_close(found.logits, wanted.logits)
        torch.testing.assert_close(found.stages, wanted.stages)
        for cohort, outputs in ((compiled, found), (reference, wanted)):
            cohort.zero_grad()
            (outputs.logits.square().sum() + outputs.stages[1][1].sin().sum()).backward()
        torch.testing.assert_close(gradients(compiled), gradients(reference))
    inside = {0, 1, 2} if mixer in (ManifoldMixup, MetaMixer) else {0}  # 0: no operation in the network
    assert counter.frame_count <= 2 * len(inside)


@pytest.mark.slow
@compiles
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_modes_of_compile(mode):
    """By torch's own compiler, which takes the mode; without a GPU no CUDA graph is recorded."""
    torch._dynamo.reset()
    networks = [small(0), small(1)]
    reference, compiled = Cohort(copy.deepcopy(networks), stages=SMALL), Cohort(networks, stages=SMALL, compile=mode)
    found, wanted = compiled(draw(4, 2, 8, 8), blending(1)), reference(draw(4, 2, 8, 8), blending(1))
    torch.testing.assert_close(found.logits, wanted.logits)
    for outputs in (found, wanted):
        outputs.logits.square().sum().backward()
    torch.testing.assert_close(gradients(compiled), gradients(reference))


@compiles
def test_the_mode_reaches_the_compiler(monkeypatch):
    asked = []

    def compile(network, mode):
        asked.append(mode)
        return original(network, backend="eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    for mode in (False, True, "reduce-overhead"):
        Cohort([small(0)], stages=SMALL, compile=mode)(draw(4, 2, 8, 8))
    assert asked == ["default", "reduce-overhead"]


def test_modes_of_compile_by_name():
    cohorts = [Cohort([small(0)], stages=SMALL, compile=mode) for mode in (False, True, "default", "max-autotune")]
    assert [cohort.compiled for cohort in cohorts] == [False, "default", "default", "max-autotune"]
    assert [cohort.records_cuda_graphs for cohort in cohorts] == [False, False, False, True]
    with pytest.raises(ValueError, match="compile='fast': accepted are False, default, reduce-overhead, max-autotune"):
        Cohort([small(0)], stages=SMALL, compile="fast")


@compiles
def test_a_hook_added_after_compilation_is_not_ignored(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    cohort = Cohort([small(0), small(1)], stages=SMALL, compile=True)
    x = draw(4, 2, 8, 8)
    before = cohort(x).logits
    handle = cohort.peers[0][3].register_forward_hook(lambda module, args, output: 2 * output)
    assert not torch.allclose(cohort(x).logits[0], before[0])
    torch.testing.assert_close(cohort(x).logits[1], before[1])
    handle.remove()
    torch.testing.assert_close(cohort(x).logits, before)


@compiles
def test_a_copy_of_a_compiled_cohort_runs_its_own_weights(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    cohort = Cohort([small(0), small(1)], stages=SMALL, compile=True)
    x = draw(4, 2, 8, 8)
    cohort(x)
    other = copy.deepcopy(cohort)
    with torch.no_grad():
        other.peers[0][-1].bias += 1
    torch.testing.assert_close(other(x).logits[0], cohort(x).logits[0] + 1)


def test_exported():
    cohort = Cohort([small(0), small(1)], stages=SMALL)
    x = draw(4, 2, 8, 8)
    exported = torch.export.export(cohort.peers[0].eval(), (x,)).module()
    torch.testing.assert_close(exported(x + 1), small(0)(x + 1))
    cohort(x, blending(1))
    torch.testing.assert_close(exported(x), small(0)(x))
    assert not torch.equal(cohort(x, blending(1)).logits[0], small(0)(x))


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
def test_distributed(tmp_path, options):
    reference = Cohort([small(0), small(1), small(2)], stages=SMALL, frozen=[2])
    wrapped = copy.deepcopy(reference)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        ddp = DistributedDataParallel(wrapped, **options)
        x = draw(4, 2, 8, 8)
        for plan in (blending(1), blending((2, 0.4, 0)), MixPlan()):
            for cohort in (ddp, reference):
                cohort.zero_grad()
                outputs = cohort(x, plan)
                assert isinstance(outputs, Outputs)
                outputs.logits.square().sum().backward()
            torch.testing.assert_close(gradients(wrapped), gradients(reference))
    finally:
        # gloo's threads still let go of the last reduction, for which they need the interpreter's lock. The process
        # group's end waits for them with that lock held: without this pause both wait for ever, now and then.
        time.sleep(0.3)
        dist.destroy_process_group()


class Fails(nn.Module):
    on = False

    def forward(self, x):
        if self.on:
            raise RuntimeError("no memory")
        return x


def test_the_plan_is_cleared_after_an_exception():
    network = small()
    network.insert(4, Fails())
    cohort = Cohort([network], stages=["1", "3"])
    x = draw(4, 2, 8, 8)
    plain = network(x)
    network[4].on = True
    with pytest.raises(RuntimeError, match="no memory"):
        cohort(x, blending(1))
    network[4].on = False
    assert torch.equal(network(x), plain)
    outputs = cohort(x, blending(1))
    assert len(outputs.stages[0]) == 2  # nothing left from the pass that failed


class Answers(nn.Module):
    """Puts out an object with logits, as transformers' models do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return SimpleNamespace(logits=self.network(x), hidden_states=None)


def test_outputs_with_logits():
    cohort = Cohort([Answers(small(0)), small(1)], stages=[[f"network.{path}" for path in SMALL], SMALL])
    reference = Cohort([small(0), small(1)], stages=SMALL)
    x = draw(4, 2, 8, 8)
    torch.testing.assert_close(cohort(x, blending(2)).logits, reference(x, blending(2)).logits)


Pair = namedtuple("Pair", ["features", "attention"])


class TupleBlock(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.linear, self.kind = nn.Linear(3, 3).double(), kind

    def forward(self, x):
        attention = x.sum()
        return Pair(self.linear(x), attention) if self.kind is Pair else (self.linear(x), attention)


class TupleNetwork(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.blocks = nn.ModuleList(TupleBlock(kind) for _ in range(2))
        self.head = nn.Linear(3, 4).double()

    def forward(self, x):
        for block in self.blocks:
            out = block(x)
            x = (out.features if block.kind is Pair else out[0]) + 0 * out[1]
        return self.head(x)


@pytest.mark.parametrize("kind", [tuple, Pair])
def test_blocks_that_put_out_tuples(kind):
    network = TupleNetwork(kind)
    x = draw(4, 3)
    outputs = Cohort([network], stages=["blocks.0", "blocks.1"])(x, blending(1))
    first, last = (block.linear for block in network.blocks)
    mixed = mix_by_hand(first(x), LAM, PARTNER)
    torch.testing.assert_close(outputs.logits[0], network.head(last(mixed)))
    torch.testing.assert_close(outputs.stages[0], (mixed, last(mixed)))


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_memory_format_is_kept_through_the_network(memory_format):
    cohort = Cohort([resnet(0)]).to(memory_format=memory_format)
    images = draw(4, 2, 8, 8).contiguous(memory_format=memory_format)
    for stage in range(4):
        for seen in cohort(images, blending(stage)).stages[0]:
            assert seen.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_come_back_as_float32(dtype):
    cohort = Cohort([small(0), small(1)], stages=SMALL)
    images = draw(4, 2, 8, 8)
    wanted = cohort(images, blending(2)).logits
    found = cohort.to(dtype)(images.to(dtype), blending(2))
    assert found.logits.dtype == torch.float32
    assert found.stages[0][1].dtype == dtype
    torch.testing.assert_close(found.logits.double(), wanted, rtol=0.05, atol=0.03)


def test_autocast():
    cohort = Cohort([small(0).float(), small(1).float()], stages=SMALL)
    images = draw(4, 2, 8, 8).float()
    wanted = cohort(images, blending(2)).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = cohort(images, blending(2))
    assert found.logits.dtype == torch.float32
    assert found.stages[0][1].dtype == torch.bfloat16
    torch.testing.assert_close(found.logits, wanted, rtol=0.05, atol=0.03)
    found.logits.sum().backward()


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_signals_images_volumes(axes):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    networks = [
        nn.Sequential(conv(2, 4, 3), nn.ReLU(), conv(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).double()
        for _ in range(2)
    ]
    x = draw(4, 2, *[6] * axes)
    for network in networks:
        network(x)
    by_hand = copy.deepcopy(networks)
    cohort = Cohort(networks, stages=["1", "3"])
    labels = torch.tensor([0, 1, 0, 1])
    for seed in range(4):
        plan = MetaMixer(local_alpha=5.0, local_probability=1.0, global_probability=1.0)(
            x, labels, generator=torch.Generator().manual_seed(seed)
        )
        outputs = cohort(x, plan)
        paste, blend = plan.operations
        inside = (..., *(slice(int(a), int(b)) for a, b in zip(paste.low, paste.high, strict=True)))
        for peer, network in enumerate(by_hand):
            mixed = x.clone()
            mixed[inside] = x[paste.partner][inside]
            end = 2 * int(blend.stage * 2)
            mixed = mix_by_hand(network[:end](mixed), blend.lam.double(), blend.partner)
            torch.testing.assert_close(outputs.logits[peer], network[end:](mixed))


def test_no_networks():
    with pytest.raises(ValueError, match="at least one network"):
        Cohort([])


def test_one_network_twice():
    network = small()
    with pytest.raises(ValueError, match="twice"):
        Cohort([network, small(1), network], stages=SMALL)


def test_different_classes():
    with pytest.raises(ValueError, match=r"peer 0 \(4, 5\), peer 1 \(4, 7\)"):
        Cohort([small(0), small(1, classes=7)], stages=SMALL)(draw(4, 2, 8, 8))


def test_a_stage_that_does_not_exist():
    with pytest.raises(StagesNotFound, match="'layer9' is not a module of Sequential"):
        Cohort([small()], stages=["layer9"])


@pytest.mark.parametrize("frozen", [[2], [-1], [0, 5]], ids=str)
def test_a_frozen_peer_that_does_not_exist(frozen):
    with pytest.raises(ValueError, match="frozen"):
        Cohort([small(0), small(1)], stages=SMALL, frozen=frozen)


def test_stages_for_another_number_of_peers():
    with pytest.raises(ValueError, match="3 peers, there are 2"):
        Cohort([small(0), small(1)], stages=[SMALL, SMALL, SMALL])


def test_stages_found_for_some_and_given_for_others():
    cohort = Cohort([resnet(0), resnet(1)], stages=[None, ["stage2"]])
    assert cohort.stage_paths == (("stage3",), ("stage2",))


@pytest.mark.parametrize("stage", [4, (1, 4), -1])
def test_a_plan_deeper_than_the_networks(stage):
    cohort = Cohort([small(0), small(1)], stages=SMALL)
    with pytest.raises(ValueError, match=r"stages 0 .images. to 3"):
        cohort(draw(4, 2, 8, 8), blending(stage))


class Wanders(nn.Module):
    """Runs its blocks in a given order."""

    def __init__(self, *order):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3).double() for _ in range(3))
        self.order = order

    def forward(self, x):
        for number in self.order:
            x = F.relu(self.blocks[number](x))
        return x


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 2, 2), (0, 0, 2), (1, 0, 2)], ids=str)
def test_every_stage_has_to_run_once_and_in_order(order):
    """One that is left out or runs twice, also where the number of passes happens to be right."""
    cohort = Cohort([Wanders(*order)], stages=["blocks.0", "blocks.1", "blocks.2"])
    with pytest.raises(ValueError, match=r"blocks\.0, blocks\.1, blocks\.2.*once"):
        cohort(draw(4, 3), blending(1))


def test_data_parallel_is_refused():
    """Its replicas would run in threads, with one tap for all of them."""
    cohort = Cohort([resnet8(num_classes=3, in_channels=1) for _ in range(2)])
    with pytest.raises(RuntimeError, match="one process for each device"):
        cohort._replicate_for_data_parallel()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            draw(4, 2, 8, 8).float(),
            r"peer 0 \(Sequential\): images are float32 and the weights float64; accepted: one type",
        ),
        (torch.zeros(4, 2, 8, 8, dtype=torch.uint8), "images are uint8; accepted: floating point, normalised"),
        (draw(0, 2, 8, 8), "the batch has no images; accepted: at least one"),
    ],
    ids=["float32", "uint8", "none"],
)
def test_images_that_peers_cannot_take(images, message):
    with pytest.raises(ValueError, match=message):
        Cohort([small(0), small(1)], stages=SMALL)(images)


def test_an_error_of_a_network_stays_its_own():
    network = small()
    network.insert(4, Fails())
    network[4].on = True
    with pytest.raises(RuntimeError, match="no memory"):
        Cohort([network], stages=["1", "3"])(draw(4, 2, 8, 8))
