"""Small-loss selection against a loop over samples, with every loss, in the trainer and after a resume."""

import dataclasses
import json
import math

import pytest
import torch

from metamixer import DML, InfoMaxAdversarial, MetaMixer
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.core.plan import Blend, MixPlan
from metamixer.core.types import Batch, Outputs, total
from metamixer.losses import LOSSES
from metamixer.runs.run import train
from metamixer.training.small_loss import SmallLoss, rows_of
from metamixer.training.train_step import Compare, train_step
from tests import toys
from tests.losses.test_contract import build, outputs_of, targets_of


def slow_selection(logits, targets, learners, kept):
    losses = []
    for b in range(len(targets)):
        each = []
        for peer in learners:
            z = [float(value) for value in logits[peer, b]]
            log_sum = math.log(sum(math.exp(value) for value in z))
            each.append(-sum(float(t) * (value - log_sum) for t, value in zip(targets[b], z, strict=True)))
        losses.append(sum(each) / len(each))
    return sorted(sorted(range(len(losses)), key=lambda b: losses[b])[:kept])


@pytest.mark.parametrize(
    ("rate", "ramp", "progress", "kept"),
    [
        (0.25, 0.0, 0.0, 6),
        (0.25, 0.5, 0.25, 7),
        (0.25, 0.5, 0.5, 6),
        (0.25, 0.5, None, 6),
        (1.0, 0.0, 1.0, 1),
        (0.0, 0.0, 1.0, 8),
    ],
)
def test_the_samples_of_a_slow_loop_are_kept(rate, ramp, progress, kept):
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((3, 8, 5), generator=draw, dtype=torch.float64)
    targets = torch.rand((8, 5), generator=draw, dtype=torch.float64)
    targets /= targets.sum(-1, keepdim=True)
    outputs = Outputs(logits, features=tuple(logits), frozen=(2,), images=(torch.arange(8.0)[:, None],) * 3)
    found, aims = SmallLoss(rate, ramp)(outputs, targets, progress)
    wanted = slow_selection(logits, targets, (0, 1), kept)
    assert found.images[0].flatten().tolist() == wanted
    assert torch.equal(found.logits, logits[:, wanted])
    assert torch.equal(found.features[1], logits[1, wanted])
    assert torch.equal(aims, targets[wanted])


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.45, 0.7])
def test_the_number_kept_is_that_of_co_teaching(rate):
    for samples in (10, 20, 100):
        assert SmallLoss(rate, 0.0).count(samples, 0.5) == math.floor(round((1 - rate) * samples, 6))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_sees_the_kept_samples_alone(name):
    """The terms and the gradients are those of a smaller batch; the samples left out get none."""
    outputs, targets = outputs_of(LOSSES[name], 2), targets_of()
    loss = build(name, outputs)
    found, aims = SmallLoss(0.5, 0.0)(outputs, targets, None)
    kept = slow_selection(outputs.logits.detach(), targets, outputs.learners, 4)
    total(loss(found, aims)).backward()
    left_out = [b for b in range(8) if b not in kept]
    assert outputs.logits.grad[:, kept].abs().sum() > 0
    assert not outputs.logits.grad[:, left_out].any()
    small = dataclasses.replace(
        outputs,
        logits=outputs.logits.detach()[:, kept],
        stages=tuple(tuple(stage.detach()[kept] for stage in own) for own in outputs.stages),
        features=tuple(each.detach()[kept] for each in outputs.features),
        images=tuple(each[kept] for each in outputs.images),
    )
    torch.manual_seed(0)
    wanted = build(name, outputs)(small, targets[kept])
    again = build(name, outputs)(found, aims)
    for key, term in wanted.items():
        assert torch.equal(again[key], term)


def test_a_peer_is_run_again_with_the_partners_it_had():
    """The images of those kept change in their places of the whole batch, which is mixed inside of the network."""
    cohort, images = toys.cohort().eval(), torch.rand(6, 1, 8, 8)
    plan = MixPlan((Blend(torch.tensor(0.4), torch.tensor([3, 4, 5, 0, 1, 2]), 1),))
    outputs = cohort(images, plan)
    chosen = torch.tensor([0, 2, 5])
    some = rows_of(outputs, chosen)
    torch.testing.assert_close(some.run(0, some.images[0], training=False), outputs.logits[0, chosen])
    changed = images.clone()
    changed[chosen] += 1
    torch.testing.assert_close(some.run(0, changed[chosen], training=False), cohort(changed, plan).logits[0, chosen])


def test_a_loss_that_attacks_images_works_with_it():
    cohort, images = toys.cohort(), torch.rand(6, 1, 8, 8)
    loss = InfoMaxAdversarial(mode="inputs", mean=(0.0,), std=(1.0,))
    loss.setup(cohort(images))
    batch = Batch(images, torch.tensor([0, 1, 2, 0, 1, 2]))
    step = train_step(
        cohort, MetaMixer(), loss, batch, torch.Generator().manual_seed(0), compare=Compare(select=SmallLoss(0.5))
    )
    total(step.terms).backward()
    assert all(term.isfinite().all() for term in step.terms.values())
    assert step.outputs.logits.shape[1] == 6  # what is measured is the whole batch


def test_a_sample_that_is_not_a_number_is_found():
    logits = torch.zeros(2, 4, 3)
    logits[0, 2] = torch.nan
    found, aims = SmallLoss(0.5, 0.0)(Outputs(logits), torch.eye(3)[[0, 1, 2, 0]], None)
    assert DML()(found, aims)["task"].isnan().any()


def test_training_resumes_to_the_same_bits(tmp_path):
    selecting = {"select_small_loss": 0.3, "select_small_loss_ramp": 0.5}
    whole = toys.trainer(tmp_path / "whole", **selecting)
    whole.fit(toys.loader(), toys.validation())
    broken = toys.trainer(tmp_path / "broken", **selecting)
    with pytest.raises(ConnectionError):
        broken.fit(toys.StopAt(toys.loader(), 12), toys.validation())
    rest = toys.trainer(tmp_path / "broken", **selecting)
    rest.fit(toys.loader(), toys.validation(), resume=True)
    plain = toys.trainer()
    plain.fit(toys.loader(), toys.validation())
    assert all(torch.equal(value, toys.weights(rest)[name]) for name, value in toys.weights(whole).items())
    assert not all(torch.equal(value, toys.weights(plain)[name]) for name, value in toys.weights(whole).items())


def test_recipes_name_it_and_those_without_it_keep_their_checksum():
    plain, named = Recipe.of({}), Recipe.of({}, ["train.select_small_loss=0.0", "train.select_small_loss_ramp=0.05"])
    assert plain.digest == named.digest
    assert "select_small_loss" not in plain._what["train"]
    assert plain.digest != Recipe.of({}, ["train.select_small_loss=0.2"]).digest
    with pytest.raises(RecipeError, match=r"train\.select_small_loss: .* less than 1"):
        Recipe.of({}, ["train.select_small_loss=1"])


def test_wrong_labels_are_left_out_in_a_run(tmp_path):
    """From the command line's entrance: a run of a recipe leaves out what its peers find hardest."""
    changes = ["train.epochs=1", "data.train_limit=8", "data.label_noise=0.5", "train.select_small_loss_ramp=0"]
    peers = [{"name": "resnet8"}, {"name": "resnet8"}]
    terms = {}
    for rate in (0.0, 0.5):
        recipe = Recipe.of({"peers": peers}, [*changes, f"train.select_small_loss={rate}"])
        train(recipe, tmp_path / str(rate))
        line = json.loads((tmp_path / str(rate) / "metrics.jsonl").read_text().splitlines()[-1])
        terms[rate] = line["terms"]["task"][0]
    assert terms[0.5] < terms[0.0]
