"""An assessment against the quick report and against counting by hand."""

import json
import math

import pytest
import torch
from torch import nn

from metamixer import Assessment, Cohort, assess, evaluate
from metamixer.core.types import Batch
from metamixer.evaluation.assess import predict_all
from metamixer.evaluation.localization.localize import Localization
from metamixer.evaluation.robustness.robustness import Robustness
from metamixer.metrics.calibration import fit_temperature


class Table(nn.Module):
    """A network whose logits are the image's pixels, turned by some classes and scaled."""

    def __init__(self, shift, scale):
        super().__init__()
        self.stage, self.norm = nn.Identity(), nn.Dropout(0.5)
        self.shift, self.scale = shift, nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x):
        return self.norm(self.stage(x.flatten(1).roll(self.shift, 1))) * self.scale


def cohort(**settings):
    return Cohort([Table(0, 2), Table(0, 1), Table(1, 0.5)], stages=["stage"], **settings)


def batches(sizes, classes=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        labels = torch.randint(classes, (size,), generator=g)
        images = torch.randn(size, classes, generator=g) + 1.5 * torch.eye(classes)[labels]
        found.append(Batch(images[:, None, None], labels))
    return found


def test_the_metrics_are_those_of_the_quick_report():
    test = batches([30, 30, 7])
    found = assess(cohort(), test, names=["a", "b", "c"])
    quick = evaluate(cohort(), test)
    for ours, theirs in zip(found.networks, quick.rows, strict=True):
        assert (ours.accuracy, ours.top5) == (theirs.accuracy, theirs.top5)
        assert ours.nll == pytest.approx(theirs.nll, rel=1e-6)
    assert [(each.name, each.kind) for each in found.networks] == [
        ("a", "peer"), ("b", "peer"), ("c", "peer"), ("ensemble", "ensemble"),
    ]  # fmt: skip
    assert found.agreement == quick.agreement
    gain = quick.ensemble.accuracy - sum(score.accuracy for score in quick.peers) / 3
    assert found.diversity.ensemble_gain == pytest.approx(gain)
    assert found.images == 67


def test_predictions_are_kept_in_order_and_modes_are_put_back():
    made, told = cohort(frozen=[2]), []
    made.train()
    test = batches([5, 3])
    found = predict_all(made, test, told.append, deployed=Table(2, 3))
    assert made.training
    assert not made.peers[2].training
    assert told == [5, 8]
    pixels = torch.cat([batch.images for batch in test]).flatten(1)
    assert torch.equal(found.labels, torch.cat([batch.labels for batch in test]))
    assert torch.equal(found.logits, torch.stack([2 * pixels, pixels, pixels.roll(1, 1) / 2]))
    assert torch.equal(found.deployed, 3 * pixels.roll(2, 1))
    mean = found.logits.double().softmax(-1).mean(0)
    assert torch.allclose(found.rows[3].exp(), mean)
    with pytest.raises(ValueError, match="no images"):
        predict_all(made, [])


def test_temperatures_are_of_the_validation_images():
    test, val = batches([80]), batches([400], seed=1)
    found = assess(cohort(), test, validation=val, deployed=Table(0, 4))
    held = val[0].images.flatten(1)
    for each, scale in zip((0, 1, 4), (2, 1, 4), strict=True):
        expected = fit_temperature(scale * held, val[0].labels)
        assert found.networks[each].temperature == pytest.approx(expected, rel=1e-4)
    shares = torch.stack([2 * held, held, held.roll(1, 1) / 2]).double().softmax(-1).mean(0)
    assert found.networks[3].temperature == pytest.approx(fit_temperature(shares.log(), val[0].labels), rel=1e-4)
    # Scaled networks are the same network once each has its temperature.
    assert found.networks[0].calibrated.nll == pytest.approx(found.networks[4].calibrated.nll, abs=1e-5)
    assert found.networks[0].nll != pytest.approx(found.networks[4].nll, abs=1e-2)
    plain = assess(cohort(), test)
    assert plain.networks[0].temperature is None
    assert plain.networks[0].calibrated is None
    assert plain.networks[0].ece == found.networks[0].ece
    same = assess(cohort(), test, validation=test)
    assert same.networks[0].calibrated.nll <= found.networks[0].calibrated.nll


def test_as_json():
    found = assess(
        cohort(), batches([40]), validation=batches([40], seed=2), classes=list("uvwxyz"), split="val",
        checkpoint="best", robustness=Robustness(), localization=Localization(),
    )  # fmt: skip
    assert isinstance(found, Assessment)
    read = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert read == found.as_dict()
    assert list(read) == [
        "format", "split", "checkpoint", "images", "classes", "networks", "peers", "robustness", "localization",
    ]  # fmt: skip
    assert read["format"] == "metamixer-evaluation-1"
    assert (read["split"], read["checkpoint"], read["classes"]) == ("val", "best", list("uvwxyz"))
    first = read["networks"][0]
    assert list(first) == [
        "name", "kind", "accuracy", "top5", "nll", "brier", "ece", "gap", "temperature", "calibrated", "per_class",
        "confusion", "reliability", "balanced_accuracy", "macro_f1",
    ]  # fmt: skip
    assert list(first["calibrated"]) == ["nll", "brier", "ece", "gap"]
    assert {name: len(values) for name, values in first["reliability"].items()} == {
        "edges": 16, "count": 15, "confidence": 15, "accuracy": 15,
    }  # fmt: skip
    assert sum(map(sum, first["confusion"])) == 40
    assert sum(first["confusion"][k][k] for k in range(6)) == round(40 * first["accuracy"])
    assert list(read["peers"]) == [
        "agreement", "pairwise_agreement", "pairwise_kl", "disagreement", "ensemble_gain",
    ]  # fmt: skip
    assert len(read["peers"]["pairwise_kl"]) == len(read["peers"]["pairwise_kl"][0]) == 3


def test_a_network_that_diverged_has_metrics_but_no_temperature():
    broken = Cohort([Table(0, 1), Table(0, math.nan)], stages=["stage"])
    found = assess(broken, batches([20]), validation=batches([20])).as_dict()
    assert found["networks"][0]["temperature"] is not None
    assert found["networks"][1]["temperature"] is None
    assert found["networks"][1]["nll"] is None


def test_shadows_and_wrong_names():
    pair = Cohort([Table(0, 1)], stages=["stage"], shadows=True)
    assert [each.kind for each in assess(pair, batches([9])).networks] == ["peer", "shadow", "ensemble"]
    with pytest.raises(ValueError, match="2 names for 3 peers"):
        assess(cohort(), batches([9]), names=["a", "b"])
    with pytest.raises(ValueError, match="5 names for 6 classes"):
        assess(cohort(), batches([9]), classes="abcde")
