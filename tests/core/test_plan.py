"""Plans: targets as the fold of the operations, and where the operations happen."""

from dataclasses import FrozenInstanceError, replace
from itertools import product

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from metamixer.core.plan import Blend, MixPlan, Paste

LABELS = torch.tensor([0, 2, 1, 2, 0, 3])
HALF = Blend(torch.tensor(0.5), torch.tensor([1, 0, 2, 3, 4, 5]))


def slow_targets(plan, labels, classes):
    """The labels of the images that make up each sample, weighted by counting: lists of floats, no tensors."""
    targets = [[float(c == label) for c in range(classes)] for label in labels.tolist()]
    for operation in plan.operations:
        before = targets
        targets = []
        for b, own in enumerate(before):
            if isinstance(operation, Blend):
                keep = float(operation.lam if operation.lam.ndim == 0 else operation.lam[b])
                other = before[int(operation.partner[b])]
            elif operation.partner is None:
                keep, other = 1.0, own
            else:
                low, high = (
                    (bound if bound.ndim == 1 else bound[b]).tolist() for bound in (operation.low, operation.high)
                )
                places = list(product(*map(range, operation.size)))
                inside = [p for p in places if all(a <= i < z for a, i, z in zip(low, p, high, strict=True))]
                keep, other = 1 - len(inside) / len(places), before[int(operation.partner[b])]
            targets.append([keep * a + (1 - keep) * z for a, z in zip(own, other, strict=True)])
    return torch.tensor(targets)


def random_operation(kind, seed):
    g = torch.Generator().manual_seed(seed)
    size = (7, 5)
    if kind.startswith("blend"):
        lam = torch.rand(() if kind == "blend" else (6,), generator=g)
        return Blend(lam, torch.randperm(6, generator=g))
    shape = (2,) if kind == "paste" else (6, 2)
    ends = torch.stack([(torch.rand(shape, generator=g) * torch.tensor([8, 6])).long() for _ in range(2)])
    return Paste(ends.amin(0), ends.amax(0), size, partner=torch.randperm(6, generator=g))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", list(product(["blend", "blend each", "paste", "paste each"], repeat=2)), ids=str)
def test_targets_are_the_fold(kinds, seed):
    plan = MixPlan(tuple(random_operation(kind, 10 * seed + i) for i, kind in enumerate(kinds)))
    targets = plan.targets(LABELS, 4)
    assert targets.dtype == torch.float32
    torch.testing.assert_close(targets, slow_targets(plan, LABELS, 4))
    torch.testing.assert_close(targets.sum(-1), torch.ones(6))


def test_three_operations_in_their_order():
    """Folds do not commute: pasting after blending mixes four labels."""
    operations = [random_operation("blend", 1), random_operation("paste", 2), random_operation("blend each", 3)]
    forward, backward = MixPlan(tuple(operations)), MixPlan(tuple(reversed(operations)))
    torch.testing.assert_close(forward.targets(LABELS, 4), slow_targets(forward, LABELS, 4))
    torch.testing.assert_close(backward.targets(LABELS, 4), slow_targets(backward, LABELS, 4))
    assert not torch.allclose(forward.targets(LABELS, 4), backward.targets(LABELS, 4))


@pytest.mark.parametrize("each", [False, True])
def test_same_class_pasting_leaves_labels_exactly(each):
    low, high = torch.tensor([1, 0]), torch.tensor([4, 4])  # 12 of 35: no share that a float holds exactly
    if each:
        low, high = low.expand(6, -1), high.expand(6, -1)
    local = MixPlan((Paste(low, high, (7, 5), partner=torch.tensor([4, 3, 2, 1, 0, 5])),))
    one_hot = torch.eye(4)[LABELS]
    assert torch.equal(local.targets(LABELS, 4), one_hot)
    other = MixPlan((Paste(low, high, (7, 5), source=torch.zeros(6, 1, 7, 5)),))
    assert torch.equal(other.targets(LABELS, 4), one_hot)
    globally = MixPlan((Blend(torch.tensor(0.7), torch.tensor([5, 4, 3, 2, 1, 0])),))
    assert torch.equal((local + globally).targets(LABELS, 4), globally.targets(LABELS, 4))


def test_an_empty_plan_is_one_hot_and_hands_images_back():
    x = torch.randn(6, 1, 2, 2)
    assert MixPlan().apply(x, 0) is x
    assert torch.equal(MixPlan().targets(LABELS, 5), torch.eye(5)[LABELS])


@pytest.mark.parametrize("seed", range(5))
def test_torchvision_cutmix_for_the_same_box(seed):
    """The box is read off torchvision's output, whose partner is the image before."""
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 9, 7).clone()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixed, targets = v2.CutMix(num_classes=4)(images, LABELS)
    rows, columns = (mixed[0, 0] != images[0, 0]).nonzero(as_tuple=True)
    low = torch.tensor([int(rows.min()), int(columns.min())])
    high = torch.tensor([int(rows.max()) + 1, int(columns.max()) + 1])
    plan = MixPlan((Paste(low, high, (9, 7), partner=torch.arange(6).roll(1)),))
    assert torch.equal(plan.apply(images, 0), mixed)
    torch.testing.assert_close(plan.targets(LABELS, 4), targets)


@pytest.mark.parametrize("seed", range(5))
def test_torchvision_mixup_for_the_same_lambda(seed):
    images = torch.arange(6.0)[:, None, None, None].expand(6, 1, 2, 2).clone()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mixed, targets = v2.MixUp(num_classes=4)(images, LABELS)
    lam = 1 - mixed[0, 0, 0, 0] / 5  # 0 lam + 5 (1 - lam)
    plan = MixPlan((Blend(lam, torch.arange(6).roll(1)),))
    torch.testing.assert_close(plan.apply(images, 0), mixed)
    torch.testing.assert_close(plan.targets(LABELS, 4), targets)


def test_joined_plans_run_one_after_the_other():
    first, second = Blend(torch.tensor(0.25), torch.tensor([1, 0])), Blend(torch.tensor(0.5), torch.tensor([1, 0]), 1)
    both = MixPlan((first,)) + MixPlan((second,))
    assert both.operations == (first, second)
    assert (MixPlan() + both).operations == (both + MixPlan()).operations == both.operations
    x = torch.tensor([[0.0], [8.0]])
    assert both.apply(x, 0).tolist() == [[6.0], [2.0]]
    assert both.apply(x, 1).tolist() == [[4.0], [4.0]]
    assert both.apply(x, 2) is x


@pytest.mark.parametrize(
    ("depth", "stages", "settled"),
    [(0.0, 3, 0), (0.33, 3, 0), (0.34, 3, 1), (0.67, 3, 2), (0.999, 3, 2), (0.5, 4, 2), (0.9, 1, 0), (0.24, 4, 0)],
)
def test_relative_depth(depth, stages, settled):
    plan = MixPlan((Blend(torch.tensor(0.5), torch.tensor([1, 0]), depth),))
    (operation,) = plan.at(stages).operations
    assert (operation.stage, type(operation.stage)) == (settled, int)
    assert plan.operations[0].stage == depth  # the plan itself stays as it was


def test_a_stage_for_each_peer():
    plan = MixPlan((Blend(torch.tensor(0.5), torch.tensor([1, 0]), (2, 0.5, 0)),))
    assert [plan.at(4, peer).operations[0].stage for peer in range(3)] == [2, 2, 0]
    with pytest.raises(ValueError, match="stages for 3 peers, this is peer 3"):
        plan.at(4, 3)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (4, "stage 4.*0 .images. to 3"),
        (-1, "stage -1"),
        (1.0, "relative depth"),
        (-0.5, "relative depth"),
        (float("nan"), "relative depth"),
        ((5, 5), "stage 5"),
    ],
)
def test_stages_that_do_not_exist(stage, message):
    with pytest.raises(ValueError, match=message):
        MixPlan((Blend(torch.tensor(0.5), torch.tensor([1, 0]), stage),)).at(3)


def test_the_last_stage_exists_and_settled_plans_stay():
    operation = Blend(torch.tensor(0.5), torch.tensor([1, 0]), 3)
    assert MixPlan((operation,)).at(3).operations[0] is operation


@pytest.mark.parametrize("stage", [0.5, 0.0, (0, 1)])
def test_relative_stages_have_to_be_settled(stage):
    plan = MixPlan((Blend(torch.tensor(0.5), torch.tensor([1, 0]), stage),))
    with pytest.raises(ValueError, match=r"plan\.at"):
        plan.apply(torch.zeros(2, 1), 0)


def test_paste_refuses_images_of_another_size():
    operation = Paste(torch.tensor([0, 0]), torch.tensor([1, 1]), (4, 4), partner=torch.arange(2))
    with pytest.raises(ValueError, match=r"\(4, 4\), these are \(4, 5\)"):
        operation(torch.zeros(2, 1, 4, 5))


def test_frozen():
    for value, name in ((MixPlan(), "operations"), (HALF, "lam"), (HALF, "stage")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor], ids=["int64", "int32", "tensor"])
def test_stages_of_other_integer_types(kind):
    plain = MixPlan((Blend(torch.tensor(0.3), torch.tensor([1, 0]), 2),))
    other = MixPlan((Blend(torch.tensor(0.3), torch.tensor([1, 0]), kind(2)),))
    x = torch.tensor([[1.0], [5.0]])
    for plan in (other, other.at(3), MixPlan((replace(plain.operations[0], stage=(kind(2), kind(1))),)).at(3, 0)):
        assert torch.equal(plan.apply(x, 2), plain.apply(x, 2))
        assert torch.equal(plan.apply(x, 1), x)
    half = MixPlan((replace(plain.operations[0], stage=np.float32(0.5)),))
    assert half.at(4).operations[0].stage == 2


def test_partners_that_repeat_cannot_stay_within_parts():
    plan = MixPlan((Blend(torch.tensor(0.5), torch.tensor([1, 1, 3, 1])),))
    with pytest.raises(ValueError, match="accepted: a permutation"):
        plan.within(2)
