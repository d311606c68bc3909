"""InfoMaxAdversarial against a slow loop of its objective in float64, and what its attacks, games and gates promise."""

import copy
import functools
import math
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import Outputs, total
from metamixer.losses import InfoMaxAdversarial
from tests import toys
from tests.oracle import draw, log_softmax

PLAIN = {"mean": (0.0, 0.0), "std": (1.0, 1.0)}
B, C = 5, 4


def targets_of(batch=B, seed=9):
    return (2 * draw(batch, C, seed=seed)).softmax(-1)


class Linear:
    """Peers that are one matrix each, to be run again: what an attack on them does is known."""

    def __init__(self, peers):
        self.weights = [draw(8, C, seed=50 + p).requires_grad_() for p in range(peers)]
        self.calls = []

    def __call__(self, peer, images, training=True):
        self.calls.append((peer, training))
        return images.flatten(1) @ self.weights[peer]


def outputs_of(shapes=((3, 4, 4), (3, 4, 4)), features=None, frozen=(), batch=B):
    peers = len(shapes)
    features = features or [3 + p for p in range(peers)]
    return Outputs(
        logits=(2 * draw(peers, batch, C)).requires_grad_(),
        stages=tuple((draw(batch, 2, 6), draw(batch, *s, seed=10 + p).requires_grad_()) for p, s in enumerate(shapes)),
        features=tuple(draw(batch, width, seed=30 + p).requires_grad_() for p, width in enumerate(features)),
        frozen=frozen,
        images=tuple(
            torch.rand((batch, 2, 4), generator=torch.Generator().manual_seed(70 + p)).double() for p in range(peers)
        ),
        run=Linear(peers),
    )


def made(outputs, **settings):
    torch.manual_seed(0)
    if settings.get("mode") == "inputs":
        settings = {**PLAIN, **settings}
    loss = InfoMaxAdversarial(**settings)
    loss.setup(outputs)
    return loss.double()


# The slow loop


def slow_kl(teacher, student, temperature):
    p, q = log_softmax(teacher.detach() / temperature), log_softmax(student / temperature)
    return sum(temperature**2 * p[c].exp() * (p[c] - q[c]) for c in range(len(p)))


def slow_attack(run, i, teachers, trusted, images, eps, step, steps):
    x = images.clone()
    for _ in range(steps):
        x = x.detach().requires_grad_()
        logits = run.weights[i].detach().T @ x.flatten(1).T
        gap = 0.0
        for t, trust in zip(teachers, trusted, strict=True):
            gap = gap + sum(trust[b] * slow_kl(t[b], logits[:, b], 1.0) for b in range(len(x)))
        gap.backward()
        x = x.detach() + (eps if steps == 1 else step) * x.grad.sign()
        x = torch.maximum(
            torch.minimum(torch.minimum(x, images + eps), torch.ones(())), torch.maximum(images - eps, torch.zeros(()))
        )
    return x.detach()


def slow(loss, outputs, targets, *, share=1.0, ramp=1.0, late=1.0, alpha=0.1, beta=None, T=3.0, tau=0.1, limit=0.9):
    """The terms of every peer by the formulas, from the loss's own projectors, regressors and discriminators."""
    peers, learners = outputs.peers, outputs.learners
    z, terms = outputs.logits, {}
    beta = beta if beta is not None else (0.05 if loss.mode == "features" else 1.0)
    sure = z.detach().softmax(-1).amax(-1)
    trusted = [[float(sure[j, b] > loss.confidence) for b in range(B)] for j in range(peers)]

    def put(name, i, value):
        terms.setdefault(name, [torch.zeros((), dtype=torch.float64)] * peers)
        terms[name][i] = value

    def embedded(p, features):
        first, _, last = loss.information.projectors[p]
        rows = [last.weight @ (first.weight @ x + first.bias).clamp(min=0) + last.bias for x in features]
        return [row / row.square().sum().sqrt() for row in rows]

    for i in learners:
        others = [j for j in range(peers) if j != i]
        entropies = [-sum(targets[b, c] * log_softmax(z[i, b])[c] for c in range(C)) for b in range(B)]
        kept = sorted(range(B), key=lambda b: entropies[b].item())[: max(1, math.floor(share * B + 1e-9))]
        put("task", i, sum(entropies[b] for b in kept) / len(kept))
        kl = sum(trusted[j][b] * slow_kl(z[j, b], z[i, b], T) for j in others for b in range(B))
        put("distill", i, ramp * kl / B / len(others))

        information = 0.0
        for j in others:
            if loss.estimator != "vid":
                u, v = embedded(i, outputs.features[i]), embedded(j, outputs.features[j].detach())
                v = [row.detach() for row in v] if j in learners else v
            for b in range(B):
                if loss.estimator == "vid":
                    found = loss.information.gaussians[f"{i}-{j}"](
                        outputs.stages[i][-1][b : b + 1], outputs.stages[j][-1][b : b + 1].detach()
                    )[0]
                else:
                    weight = [
                        [
                            1.0 if b == c else (1 - float(targets[b] @ targets[c]) if loss.mask_same_class else 1.0)
                            for c in range(B)
                        ]
                        for b in range(B)
                    ]
                    s = [[u[b] @ v[c] / tau for c in range(B)] for b in range(B)]
                    if loss.estimator == "infonce":
                        rows = sum(weight[b][c] * s[b][c].exp() for c in range(B))
                        columns = sum(weight[b][c] * s[c][b].exp() for c in range(B))
                        found = -((s[b][b].exp() / rows).log() + (s[b][b].exp() / columns).log()) / 2
                    else:
                        apart = [(weight[a][b], (1 + s[a][b].exp()).log()) for a in range(B) if a != b]
                        found = (1 + (-s[b][b]).exp()).log() + sum(w * x for w, x in apart) / sum(w for w, _ in apart)
                information = information + trusted[j][b] * found / B / len(others)
        put("information", i, alpha * ramp * information)

        if loss.mode == "features":
            judge = loss.discriminators[str(i)]
            fake = loss.transfers[i](outputs.stages[i][-1])
            real = [loss.transfers[j](outputs.stages[j][-1]) for j in others]
            constant = copy.deepcopy(judge).requires_grad_(False)
            put("adversarial", i, beta * late * (1 - constant(fake)).square().mean())
            on_real, on_fake = [judge(each.detach()) for each in real], judge(fake.detach())
            right = (sum((each > 0.5).sum() for each in on_real) / len(others) + (on_fake <= 0.5).sum()) / (2 * B)
            value = sum((1 - each).square().mean() for each in on_real) / len(others) + on_fake.square().mean()
            put("discriminator", i, 0.01 * value * float(right <= limit))
        if loss.mode == "inputs":
            run, teachers = outputs.run, [z[j].detach() for j in others]
            changed = slow_attack(
                run, i, teachers, [trusted[j] for j in others], outputs.images[i], loss.eps, loss.step, loss.steps
            )
            logits = changed.flatten(1) @ run.weights[i]
            kl = sum(trusted[j][b] * slow_kl(z[j, b], logits[b], T) for j in others for b in range(B))
            put("adversarial", i, beta * kl / B / len(others))
    return {name: torch.stack(values) for name, values in terms.items()}


def leaves_of(loss, outputs):
    own = [weight for weight in loss.parameters() if weight.requires_grad]
    stages = [peer[-1] for peer in outputs.stages]
    return [outputs.logits, *stages, *outputs.features, *(outputs.run.weights if loss.mode == "inputs" else ()), *own]


def compare(loss, outputs, targets, found, wanted):
    assert set(found) == set(wanted)
    for name, term in found.items():
        torch.testing.assert_close(term, wanted[name], msg=lambda text, name=name: f"{name}: {text}")
        for i in outputs.learners:
            leaves = leaves_of(loss, outputs)
            grads = [
                torch.autograd.grad(each[i], leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
                if each[i].requires_grad
                else [torch.zeros_like(leaf) for leaf in leaves]
                for each in (term, wanted[name])
            ]
            for one, other in zip(*grads, strict=True):
                torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


ALIKE, THREE = ((3, 4, 4), (3, 4, 4)), ((3, 4, 4),) * 3
CASES = {
    "defaults": ({}, ALIKE, ()),
    "three": ({}, THREE, ()),
    "teacher": ({}, THREE, (1,)),
    "nothing": ({"mode": "none"}, THREE, ()),
    "masked": ({"mode": "none", "mask_same_class": True}, ALIKE, ()),
    "jsd": ({"mode": "none", "estimator": "jsd", "mask_same_class": True}, THREE, ()),
    "vid": ({"mode": "none", "estimator": "vid"}, THREE, (2,)),
    "fgsm": ({"mode": "inputs"}, ALIKE, ()),
    "fgsm of three": ({"mode": "inputs"}, THREE, (0,)),
    "pgd": ({"mode": "inputs", "steps": 3, "eps": 0.05, "step": 0.03}, ALIKE, ()),
    "confident": ({"confidence": 0.7}, THREE, ()),
    "confident jsd": ({"confidence": 0.7, "estimator": "jsd", "mode": "inputs"}, THREE, ()),
    "confident vid": ({"confidence": 0.7, "estimator": "vid"}, THREE, ()),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_slow_loop(case):
    settings, shapes, frozen = CASES[case]
    outputs, targets = outputs_of(shapes, frozen=frozen), targets_of()
    loss = made(outputs, **settings)
    compare(loss, outputs, targets, loss(outputs, targets), slow(loss, outputs, targets))


def test_other_weights():
    outputs, targets = outputs_of(), targets_of()
    loss = made(outputs, temperature=2.0, weight=0.5, information_weight=0.3, tau=0.5, adversarial_weight=0.7)
    wanted = slow(loss, outputs, targets, T=2.0, alpha=0.3, tau=0.5, beta=0.7)
    compare(loss, outputs, targets, loss(outputs, targets), {**wanted, "distill": 0.5 * wanted["distill"]})


@pytest.mark.parametrize("progress", [0.0, 0.09, 0.1, 0.2, 0.3, 0.9])
@pytest.mark.parametrize("tensor", [False, True])
def test_over_time(progress, tensor):
    """KL and information rise from the start, the adversary after a tenth; its discriminators learn at once."""
    outputs, targets = outputs_of(), targets_of()
    loss = made(outputs)

    def rise(done):
        return math.exp(-5 * (1 - min(done / (80 / 300), 1)) ** 2)

    late = rise(progress - 0.1) if progress >= 0.1 else 0.0
    found = loss(outputs, targets, torch.tensor(progress, dtype=torch.float64) if tensor else progress)
    compare(loss, outputs, targets, found, slow(loss, outputs, targets, ramp=rise(progress), late=late))
    assert found["discriminator"].all()


def test_attacks_have_their_full_weight_from_the_start():
    outputs, targets = outputs_of(), targets_of()
    loss = made(outputs, mode="inputs")
    torch.testing.assert_close(loss(outputs, targets, 0.0)["adversarial"], loss(outputs, targets)["adversarial"])


# Gates


@pytest.mark.parametrize(
    ("rate", "progress", "share"),
    [(0.4, None, 0.6), (0.4, 0.025, 0.8), (0.4, 0.5, 0.6), (0.5, 0.0, 1.0), (1.0, 1.0, 0.0)],
)
@pytest.mark.parametrize("tensor", [False, True])
def test_samples_of_large_loss_are_left_out(rate, progress, share, tensor):
    outputs, targets = outputs_of(THREE), targets_of()
    loss = made(outputs, mode="none", noise_rate=rate)
    at = torch.tensor(progress, dtype=torch.float64) if tensor and progress is not None else progress
    found = loss(outputs, targets, at)["task"]
    wanted = slow(loss, outputs, targets, share=share)["task"]
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad(each.sum(), outputs.logits)[0] for each in (found, wanted)]
    torch.testing.assert_close(*grads)
    kept = (grads[0].abs().sum(-1) > 0).sum(-1)
    assert kept.tolist() == [max(1, round(share * B))] * 3


def test_a_wrong_label_is_found():
    logits = torch.full((2, 4, 3), -3.0)
    logits[:, :, 0] = 3.0  # everyone is sure of class 0
    labels = torch.eye(3)[[0, 0, 0, 2]]
    outputs = Outputs(logits.requires_grad_(), features=(torch.randn(4, 2),) * 2)
    loss = InfoMaxAdversarial(mode="none", noise_rate=0.25)
    loss.setup(outputs)
    assert (loss(outputs, labels)["task"] < 0.01).all()
    loss.noise_rate = 0.0
    assert (loss(outputs, labels)["task"] > 1).all()


def test_teachers_that_are_not_sure_teach_nothing():
    outputs, targets = outputs_of(), targets_of()
    sure = torch.zeros(2, B, C, dtype=torch.float64)
    sure[0, :, 1] = 9.0  # peer 0 is sure, peer 1 has no idea
    outputs = replace(outputs, logits=sure.requires_grad_())
    for settings in ({"mode": "inputs"}, {"estimator": "jsd", "mode": "none"}, {"estimator": "vid", "mode": "none"}):
        loss = made(outputs, confidence=0.9, **settings)
        terms = loss(outputs, targets)
        for name in ("distill", "information", "adversarial"):
            if name in terms:
                assert terms[name][0] == 0
                assert terms[name][1] != 0
        assert (loss.watched["information_nats"] != 0).all()  # the number is of all samples


# The game


class Sure(nn.Module):
    def forward(self, features):
        return features.flatten(1).mean(-1)


@pytest.mark.parametrize(("right", "plays"), [(10, False), (9, True), (5, True)])
def test_a_discriminator_that_wins_waits(right, plays):
    outputs = outputs_of()
    real, fake = torch.full((B, 3, 4, 4), 0.8).double(), torch.full((B, 3, 4, 4), 0.2).double()
    for row in range(10 - right):  # taken for the other
        if row < B:
            real[row] = 0.3
        else:
            fake[row - B] = 0.7
    outputs = replace(outputs, stages=((fake,), (real,)))
    loss = made(outputs)
    loss.discriminators["0"] = Sure()
    terms = loss(outputs, targets_of())
    assert loss.watched["discriminator_accuracy"][0].item() == pytest.approx(right / 10)
    assert bool(terms["discriminator"][0]) == plays
    assert terms["adversarial"][0] > 0


def test_two_updates_of_one_pass():
    """Discriminators get nothing from the peers' term, peers nothing from the discriminators'."""
    outputs = outputs_of(((3, 4, 4), (5, 4, 4)))
    loss = made(outputs)
    terms = loss(outputs, targets_of())
    judges = list(loss.discriminators.parameters())
    stages = [peer[-1] for peer in outputs.stages]
    from_game = torch.autograd.grad(
        terms["discriminator"].sum(), [*judges, *stages], allow_unused=True, retain_graph=True
    )
    assert all(grad is not None and grad.any() for grad in from_game[: len(judges)])
    assert all(grad is None or not grad.any() for grad in from_game[len(judges) :])
    transfers = list(loss.transfers.parameters())
    from_peers = torch.autograd.grad(terms["adversarial"].sum(), [*judges, *stages, *transfers], allow_unused=True)
    assert all(grad is None for grad in from_peers[: len(judges)])
    assert all(grad.any() for grad in from_peers[len(judges) :])


# Balance


def small_cohort(seed=0):
    """Logits, features and last stages on one graph, with leaves below them."""
    leaves = [draw(B, 3, 2, 2, seed=seed + p).requires_grad_() for p in range(2)]
    stages = [2 * leaf for leaf in leaves]
    pooled = [stage.flatten(2).mean(-1) for stage in stages]
    logits = torch.stack([each @ draw(3, C, seed=40 + p) for p, each in enumerate(pooled)])
    return Outputs(logits, tuple((stage,) for stage in stages), tuple(pooled))


@pytest.mark.parametrize("mode", ["features", "none"])
def test_balance_weighs_by_the_size_of_gradients(mode):
    loss = made(small_cohort(), mode=mode, balance=True, information_weight=0.2, adversarial_weight=0.3)
    plain = copy.deepcopy(loss)
    plain.norms, plain.information_weight, plain.adversarial_weight = None, 1.0, 1.0
    means = dict.fromkeys(loss.norms.state_dict(), torch.zeros(2, dtype=torch.float64))
    for seed in (0, 1, 2):
        outputs, targets = small_cohort(seed), targets_of(seed=seed)
        raw = plain(outputs, targets)
        for name in means:
            norms = []
            for p in range(2):
                (grad,) = torch.autograd.grad(raw[name][p], outputs.stages[p][0], retain_graph=True)
                norms.append(math.sqrt(sum(float(x) ** 2 for x in grad.flatten())))
            means[name] = 0.9 * means[name] + 0.1 * torch.tensor(norms, dtype=torch.float64)
        found = loss(outputs, targets)
        for name, setting in {"information": 0.2, "adversarial": 0.3}.items():
            if name in means:
                weight = (setting * means["task"] / (means[name] + 1e-6)).clamp(0, 1)
                torch.testing.assert_close(found[name], weight * raw[name])
                torch.testing.assert_close(loss.watched[f"{name}_weight"], weight)
        torch.testing.assert_close(found["distill"], raw["distill"])
        total(found).backward()  # the graph is still there
    assert (means["task"] > 0).all()


def test_balance_is_saved_and_waits_for_its_turn():
    loss, outputs = made(small_cohort(), balance=True), small_cohort()
    loss(outputs, targets_of())
    before = {name: value.clone() for name, value in loss.norms.state_dict().items()}
    assert {f"norms.{name}" for name in ("task", "information", "adversarial")} <= set(loss.state_dict())
    turn = replace(
        outputs,
        logits=torch.stack([outputs.logits[0].detach(), outputs.logits[1]]),
        stages=((outputs.stages[0][0].detach(),), outputs.stages[1]),
        features=(outputs.features[0].detach(), outputs.features[1]),
    )
    loss(turn, targets_of(seed=3))
    for name, value in loss.norms.state_dict().items():
        assert value[0] == before[name][0]
        assert value[1] != before[name][1]
    after = {name: value.clone() for name, value in loss.norms.state_dict().items()}
    with torch.no_grad():
        loss(small_cohort(), targets_of())
    loss.eval()(small_cohort(), targets_of())
    assert all(torch.equal(value, after[name]) for name, value in loss.norms.state_dict().items())


def test_balance_says_where_it_cannot_work():
    outputs = outputs_of()  # logits that know nothing of the stages
    with pytest.raises(ValueError, match="compiled, or run in threads"):
        made(outputs, balance=True)(outputs, targets_of())
    with pytest.raises(ValueError, match="balance=True"):
        InfoMaxAdversarial(mode="inputs", balance=True)


# Attacks on cohorts


def norm_net(seed, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(width * 16, C),
    )


def cohort_of(**settings):
    return Cohort([norm_net(0), norm_net(1, width=5)], stages=["0", "1"], **settings)


def images_of(batch=B):
    return (torch.rand((batch, 1, 8, 8), generator=torch.Generator().manual_seed(3)) - 0.3) / 0.2


def attacker(outputs, **settings):
    torch.manual_seed(0)
    loss = InfoMaxAdversarial(mode="inputs", **{"mean": (0.3,), "std": (0.2,), **settings})
    loss.setup(outputs)
    return loss


def states(cohort):
    return {name: value.clone() for name, value in cohort.state_dict().items()}


PLANS = [MixPlan(), MixPlan((Blend(torch.tensor(0.7), torch.tensor([1, 2, 3, 4, 0]), 1),))]


@pytest.mark.parametrize("plan", PLANS, ids=["plain", "mixed"])
def test_running_a_peer_for_an_attack_leaves_it_as_it_is(plan):
    cohort, x = cohort_of(), images_of()
    cohort.peers[0][1][1].eval()  # one that is in evaluation mode for good
    modes = {name: module.training for name, module in cohort.named_modules()}
    outputs = cohort(x, plan)
    before, rng = states(cohort), torch.get_rng_state()
    at = x.clone().requires_grad_()
    logits = outputs.run(0, at, training=False)
    (grad,) = torch.autograd.grad(logits.square().sum(), at)
    assert grad.any()
    assert all(torch.equal(value, before[name]) for name, value in states(cohort).items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert {name: module.training for name, module in cohort.named_modules()} == modes
    assert all(weight.grad is None for weight in cohort.parameters())
    cohort.eval()
    torch.testing.assert_close(logits, cohort(x, plan).logits[0])


def test_a_failure_gives_the_mode_back():
    cohort = cohort_of()
    outputs = cohort(images_of())
    with pytest.raises(RuntimeError):
        outputs.run(0, torch.zeros(2, 7, 8, 8), training=False)
    assert all(module.training for module in cohort.modules())


@pytest.mark.parametrize("turn", [None, 0, 1])
@pytest.mark.parametrize("frozen", [(), (1,)])
def test_a_peer_is_looked_at_whoever_learns(turn, frozen):
    cohort, x = cohort_of(frozen=frozen), images_of().requires_grad_()
    with cohort.learning(turn):
        for peer in (0, 1):
            run = cohort(x.detach()).run
            assert torch.autograd.grad(run(peer, x, training=False).square().sum(), x)[0].any()
            learns = run(peer, x.detach()).requires_grad
            assert learns == (peer not in frozen and turn in (None, peer))


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("plan", PLANS, ids=["plain", "mixed"])
def test_attacks_raise_the_divergence_within_their_limits(steps, plan, monkeypatch):
    cohort, x = cohort_of(), images_of()
    outputs = cohort(x, plan)
    shown = []

    def run(peer, images, training=True):
        if training:
            shown.append((peer, images))
        return outputs.run(peer, images, training)

    before = states(cohort)
    attacker(outputs, steps=steps)(replace(outputs, run=run), targets_of().float())
    assert [peer for peer, _ in shown] == [0, 1]
    for peer, images in shown:
        pixels, was = images * 0.2 + 0.3, outputs.images[peer] * 0.2 + 0.3
        assert (pixels - was).abs().max() <= 8 / 255 + 1e-6
        assert (pixels - was).abs().max() >= (7.999 if steps == 1 else 7) / 255
        assert pixels.min() >= -1e-6
        assert pixels.max() <= 1 + 1e-6
        teacher = outputs.logits[1 - peer].softmax(-1)

        def gap(images, peer=peer, teacher=teacher):
            return F.kl_div(outputs.run(peer, images, training=False).log_softmax(-1), teacher, reduction="batchmean")

        assert gap(images) > gap(outputs.images[peer]) + 1e-4
    after = states(cohort)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert all("running" in name or "num_batches" in name for name in moved)
    counted = [after[name] - before[name] for name in after if name.endswith("num_batches_tracked")]
    assert [int(each) for each in counted] == [1] * 4  # the pass that is learned from, and no other


@pytest.mark.parametrize("steps", [1, 3])
def test_a_step_with_attacks(steps):
    cohort, x = cohort_of(), images_of()
    outputs = cohort(x)
    loss = attacker(outputs, steps=steps)
    terms = loss(outputs, targets_of().float())
    assert list(terms) == ["task", "distill", "information", "adversarial"]
    (only,) = torch.autograd.grad(terms["adversarial"][0], [cohort.peers[0][0][0].weight], retain_graph=True)
    assert only.any()
    crossing = torch.autograd.grad(
        terms["adversarial"][0], list(cohort.peers[1].parameters()), retain_graph=True, allow_unused=True
    )
    assert all(grad is None or not grad.any() for grad in crossing)
    total(terms).backward()
    assert all(weight.grad.isfinite().all() for weight in cohort.parameters())


def test_attacks_on_branches():
    """The trunk is run anew for the attack; its gradient is divided as in the pass before, where that is asked for."""
    grads = []
    for rescale in (False, True):
        networks = [norm_net(0), norm_net(0)]
        networks[1][4] = nn.Linear(96, C)
        networks[1][4].load_state_dict({"weight": networks[0][4].weight.flip(0), "bias": networks[0][4].bias.flip(0)})
        share_trunk(networks, "0", rescale=rescale)
        for network in networks:
            network[3].p = 0.0
        cohort, x = Cohort(networks, stages=["0", "1"]), images_of()
        outputs = cohort(x)
        loss = attacker(outputs)
        terms = loss(outputs, targets_of().float())
        assert (terms["adversarial"] > 0).all()
        grads.append(torch.autograd.grad(terms["adversarial"].sum(), cohort.peers[0][0][0].weight)[0])
    torch.testing.assert_close(grads[1], grads[0] / 2)


def test_attacks_on_compiled_peers(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        networks = [
            nn.Sequential(nn.Conv2d(1, 3, 3, stride=2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, C))
            for _ in range(2)
        ]
        cohort, x = Cohort(networks, stages=["1"], compile=compiled), images_of()
        outputs = cohort(x, PLANS[1])
        loss = attacker(outputs, steps=2)
        for _ in range(2):
            terms = loss(cohort(x, PLANS[1]), targets_of().float())
        total(terms).backward()
        found.append((terms["adversarial"], cohort.peers[0][0].weight.grad, states(cohort)))
    torch.testing.assert_close(found[1], found[0])


test_attacks_on_compiled_peers = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning", "ignore:.*should not be instantiated:DeprecationWarning"
)(test_attacks_on_compiled_peers)


@pytest.mark.parametrize("settings", [{}, {"update": "alternating"}], ids=["joint", "alternating"])
@pytest.mark.parametrize("mode", ["features", "inputs", "none"])
def test_in_the_trainer(mode, settings):
    loss = InfoMaxAdversarial(mode=mode, mean=(0.3,), std=(0.2,), estimator="jsd" if mode == "none" else "infonce")
    fitted = toys.trainer(loss=loss, epochs=1, **settings).fit(toys.loader(), toys.validation())
    assert fitted.val is not None
    assert {name: value.shape for name, value in loss.watched.items()}.items() >= {
        "agreement": (2,),
        "information_nats": (2,),
    }.items()


# What is watched, parts, settings


def test_what_is_watched():
    outputs, targets = outputs_of(THREE, frozen=(1,)), targets_of()
    named = torch.tensor([[0, 1, 2, 3, 0], [0, 1, 2, 2, 1], [1, 1, 2, 3, 1]])
    outputs = replace(outputs, logits=(5 * torch.eye(C, dtype=torch.float64)[named]).requires_grad_())
    loss = made(outputs)
    terms = loss(outputs, targets)
    torch.testing.assert_close(loss.watched["agreement"], torch.tensor([0.6, 0, 0.6], dtype=torch.float64))
    assert list(loss.watched) == ["agreement", "information_nats", "discriminator_accuracy"]
    for value in loss.watched.values():
        assert value.shape == (3,)
        assert value[1] == 0
        assert not value.requires_grad
    assert not set(loss.watched) & set(terms)  # both are logged by their names
    raw = terms["information"] / 0.1
    torch.testing.assert_close(loss.watched["information_nats"][[0, 2]], math.log(B) - raw[[0, 2]].detach())


def test_information_is_learned():
    """Two networks that see one image each learn to tell its two features from those of other images."""
    features = [draw(64, 8), draw(64, 8) @ draw(8, 8, seed=1)]
    outputs = Outputs(torch.zeros(2, 64, C).double(), features=tuple(features))
    loss = made(outputs, mode="none")
    optimizer = torch.optim.Adam(loss.parameters(), 0.01)
    nats = []
    for _ in range(40):
        optimizer.zero_grad()
        total(loss(outputs, targets_of(64))).backward()
        optimizer.step()
        nats.append(loss.watched["information_nats"].mean().item())
    assert nats[0] < 0.7 * math.log(64)
    assert 0.9 * math.log(64) < nats[-1] <= math.log(64)


MIXED = ((3, 4, 4), (5, 2, 4), (4, 3, 6))


@pytest.mark.parametrize(
    "shapes", [MIXED, ((3, 4, 4), (7,), (4, 3, 3)), ((3,), (4,), (5,)), ((3, 6), (2, 4), (4, 5))], ids=str
)
@pytest.mark.parametrize("estimator", ["infonce", "vid"])
def test_peers_of_different_shapes(shapes, estimator):
    outputs, targets = outputs_of(shapes), targets_of()
    terms = made(outputs, estimator=estimator)(outputs, targets)
    total(terms).backward()
    for p, peer in enumerate(outputs.stages):
        reached = outputs.features[p] if len({len(shape) for shape in shapes}) > 1 else peer[-1]
        assert reached.grad.isfinite().all()
        assert reached.grad.any()


def test_stages_are_averaged_to_the_smallest():
    outputs, targets = outputs_of(((3, 4, 4), (3, 2, 4), (3, 4, 2))), targets_of()
    small = [F.adaptive_avg_pool2d(peer[-1], (2, 2)) for peer in outputs.stages]
    alike = replace(outputs, stages=tuple((each,) for each in small))
    loss = made(outputs)
    assert not list(loss.transfers.parameters())  # of one width, D sees them as they are
    found, wanted = loss(outputs, targets), loss(alike, targets)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


def test_frozen_peers_learn_nothing():
    outputs, targets = outputs_of(MIXED, frozen=(1,)), targets_of()
    loss = made(outputs)
    terms = loss(outputs, targets)
    assert all(term[1] == 0 for term in terms.values())
    total(terms).backward()
    assert not outputs.logits.grad[1].any()
    assert outputs.stages[1][-1].grad is None
    assert outputs.features[1].grad is None
    assert set(loss.discriminators) == {"0", "2"}
    assert not any(weight.requires_grad for weight in loss.transfers[1].parameters())
    assert all(weight.grad.any() for weight in loss.information.projectors[1].parameters())


@pytest.mark.parametrize(
    "settings", [{}, {"estimator": "vid", "mode": "none"}, {"balance": True}, {"mode": "inputs"}], ids=str
)
def test_parts_are_made_once_and_travel(settings):
    outputs, targets = outputs_of(MIXED), targets_of()
    if settings.get("balance"):
        outputs = small_cohort()
    loss = made(outputs, **settings)
    before = [id(weight) for weight in loss.parameters()]
    loss.setup(outputs)
    assert [id(weight) for weight in loss.parameters()] == before
    assert set(dict(loss.named_parameters())) <= set(loss.state_dict())
    assert "pixel_range" not in loss.state_dict()
    loss(outputs, targets)
    torch.manual_seed(1)
    other = InfoMaxAdversarial(**{**(PLAIN if settings.get("mode") == "inputs" else {}), **settings})
    other.setup(outputs)
    other.double().load_state_dict(loss.state_dict())
    twins = [copy.deepcopy(loss), other]
    wanted = copy.deepcopy(loss)(outputs, targets)
    twins.append(pickle.loads(pickle.dumps(loss)))
    for twin in twins:
        found = twin(outputs, targets)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    if not settings.get("balance"):
        loss.setup(outputs_of(((2, 4, 4), (3, 4, 4)), features=[9, 9]))
        assert [id(weight) for weight in loss.parameters()] != before


@pytest.mark.parametrize("peers", [2, 3])
def test_identical_peers_have_nothing_to_distil(peers):
    outputs = outputs_of(THREE[:peers])
    same = replace(outputs, logits=outputs.logits[:1].expand(peers, -1, -1).detach().clone().requires_grad_())
    assert made(same)(same, targets_of())["distill"].tolist() == [0.0] * peers


@pytest.mark.parametrize("mode", ["features", "inputs", "none"])
@pytest.mark.parametrize("scale", [0.0, 2e4])
def test_sure_and_clueless_peers(mode, scale):
    outputs = outputs_of()
    outputs = replace(outputs, logits=(scale * outputs.logits.detach()).float().requires_grad_())
    loss = made(outputs, mode=mode)
    terms = loss(outputs, targets_of())
    total(terms).backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert outputs.logits.grad.isfinite().all()


def test_bf16():
    cohort, x = cohort_of(), images_of()
    for settings in ({"mode": "inputs", "mean": (0.3,), "std": (0.2,)}, {"estimator": "vid"}):
        loss = InfoMaxAdversarial(**settings)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = cohort(x)
            loss.setup(outputs)
            terms = loss(outputs, targets_of().float())
        assert all(term.dtype == torch.float32 and term.isfinite().all() for term in terms.values())
        cohort.zero_grad()
        total(terms).backward()
        assert all(
            weight.grad.isfinite().all() and weight.grad.any() for weight in cohort.parameters() if weight.ndim > 1
        )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature="),
        ({"tau": 0.0}, "tau="),
        ({"weight": -1.0}, "weight="),
        ({"information_weight": -0.1}, "information_weight="),
        ({"adversarial_weight": -0.1}, "adversarial_weight="),
        ({"ramp_up": 1.5}, "ramp_up="),
        ({"adversarial_start": 1.5}, "adversarial_start="),
        ({"eps": 0.0}, "eps="),
        ({"step": -1.0}, "step="),
        ({"steps": 0}, "steps="),
        ({"noise_rate": 1.5}, "noise_rate="),
        ({"noise_ramp": -0.5}, "noise_ramp="),
        ({"confidence": -0.5}, "confidence="),
        ({"estimator": "mine"}, "'infonce', 'vid' or 'jsd'"),
        ({"mode": "pixels"}, "'features', 'inputs' or 'none'"),
        ({"mean": (0.5,)}, "one mean and one deviation"),
        ({"mean": (0.5,), "std": (0.0,)}, "one mean and one deviation"),
    ],
    ids=str,
)
def test_invalid_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        InfoMaxAdversarial(**setting)


def test_what_does_not_fit_is_said():
    outputs, targets = outputs_of(), targets_of()
    with pytest.raises(ValueError, match="setup"):
        InfoMaxAdversarial()(outputs, targets)
    with pytest.raises(ValueError, match="set_pixels"):
        InfoMaxAdversarial(mode="inputs").setup(outputs)
    with pytest.raises(ValueError, match="outputs of a Cohort"):
        InfoMaxAdversarial(mode="inputs", **PLAIN).setup(replace(outputs, run=None))
    with pytest.raises(ValueError, match="1 channels, the images have 2"):
        made(outputs, mode="inputs", mean=(0.5,), std=(0.5,))(outputs, targets)
    with pytest.raises(ValueError, match="features"):
        InfoMaxAdversarial().setup(replace(outputs, features=()))
    with pytest.raises(ValueError, match="stages"):
        InfoMaxAdversarial().setup(replace(outputs, stages=()))
    InfoMaxAdversarial(mode="none").setup(replace(outputs, stages=()))
    with pytest.raises(ValueError, match="two or more"):
        InfoMaxAdversarial().setup(outputs_of(((3, 4, 4),)))
    with pytest.raises(ValueError, match="soft"):
        made(outputs)(outputs, torch.tensor([0, 1, 2, 3, 0]))


def test_a_recipe_names_it():
    recipe = Recipe.of(
        {"loss": {"name": "infomax-adversarial", "mode": "inputs", "mean": [0.3], "std": [0.2], "steps": 10}}
    )
    loss = recipe.build_loss()
    assert loss.steps == 10
    torch.testing.assert_close(loss.pixel_range, torch.tensor([[-1.5], [3.5]]))
    assert Recipe.of(recipe.as_dict()).digest == recipe.digest
    with pytest.raises(RecipeError, match="features"):
        Recipe.of({"loss": {"name": "infomax-adversarial", "mode": "pixels"}})


def test_the_data_say_what_pixels_are():
    loss = InfoMaxAdversarial(mode="inputs", mean=(0.0,), std=(1.0,))
    loss.set_pixels([0.5, 0.25], [0.5, 0.25])
    torch.testing.assert_close(loss.pixel_range, torch.tensor([[-1.0, -1.0], [1.0, 3.0]]))
    assert loss.to(torch.float64).pixel_range.dtype == torch.float64


class Unread(TorchDispatchMode):
    """Fails where a value goes to the host: a GPU would stall there, and no graph could be captured."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_same_class": True, "noise_rate": 0.2, "confidence": 0.5},
        {"mode": "inputs", "steps": 2, "mean": (0.3,), "std": (0.2,), "estimator": "jsd"},
        {"estimator": "vid", "balance": True},
    ],
    ids=str,
)
def test_nothing_is_read_from_the_device(settings, monkeypatch):
    # Whether targets are a distribution is read on a CPU alone.
    monkeypatch.setattr("metamixer.losses.functional.check_distribution", lambda _: None)
    cohort, x = cohort_of(), images_of()
    loss = InfoMaxAdversarial(**settings)
    loss.setup(cohort(x))
    targets, progress = targets_of().float(), torch.tensor(0.2)
    with Unread():
        terms = loss(cohort(x), targets, progress)
        total(terms).backward()
    assert all(term.isfinite().all() for term in terms.values())
