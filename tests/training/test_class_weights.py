"""Weights of classes and label smoothing, against scikit-learn and torch, with every loss, and after a resume."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from metamixer.config.recipe import Recipe
from metamixer.core.types import Outputs
from metamixer.losses import DML, LOSSES, Independent
from metamixer.losses.functional import soft_cross_entropy, weighing
from metamixer.training.class_weights import smoothed, weights_of
from metamixer.training.train_step import Compare
from metamixer.training.trainer import TrainingError
from tests import toys
from tests.losses.test_contract import build, outputs_of, targets_of

COUNTS = [40, 7, 1, 12]


def test_balanced_is_that_of_scikit_learn():
    labels = np.repeat(np.arange(4), COUNTS)
    wanted = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(weights_of("balanced", COUNTS).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999])
def test_effective_is_that_of_a_slow_loop(beta):
    raw = [1 / sum(beta**k for k in range(count)) for count in COUNTS]  # 1 + beta + ... = (1 - beta^n) / (1 - beta)
    wanted = [4 * each / sum(raw) for each in raw]
    assert weights_of("effective", COUNTS, beta).tolist() == pytest.approx(wanted, rel=1e-6)


def test_a_class_without_images_has_a_finite_weight():
    for kind in ("balanced", "effective"):
        assert weights_of(kind, [3, 0, 5]).isfinite().all()
    assert weights_of("none", [3, 0]) is None


def test_cross_entropy_is_weighted_and_smoothed_as_in_torch():
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn((2, 6, 4), generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    weights = weights_of("balanced", COUNTS).double()
    targets = F.one_hot(labels, 4).double()
    mixed = 0.7 * targets + 0.3 * targets.flip(0)
    with weighing(weights):
        found = soft_cross_entropy(logits, mixed)
    assert found.tolist() == pytest.approx([float(F.cross_entropy(z, mixed, weight=weights)) for z in logits])
    compared = Compare(0.1)(Independent(), Outputs(logits), targets, None)["task"]
    wanted = [float(F.cross_entropy(z, labels, label_smoothing=0.1)) for z in logits]
    assert compared.tolist() == pytest.approx(wanted)
    assert smoothed(targets, 0.0) is targets


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_weighted(name):
    """Weights of 1 change no bit; others change the cross-entropies, and those alone where labels have no part."""
    outputs, targets = outputs_of(LOSSES[name], 2), targets_of()
    classes = targets.shape[-1]

    def terms(weights):
        torch.manual_seed(0)
        with weighing(weights):
            return build(name, outputs)(outputs, targets)

    plain, same, other = terms(None), terms(torch.ones(classes)), terms(torch.arange(1.0, classes + 1))
    assert all(torch.equal(plain[key], same[key]) for key in plain)
    assert any(not torch.equal(plain[key], other[key]) for key in plain)
    if name == "dml":
        assert torch.equal(plain["distill"], other["distill"])


def test_training_with_both_resumes_to_the_same_bits_and_differs_from_without(tmp_path):
    settings = {"class_weights": "effective", "class_weights_beta": 0.9, "label_smoothing": 0.1}
    whole, broken, rest = (toys.trainer(tmp_path / name, 2, **settings) for name in ("whole", "broken", "broken"))
    whole.fit(toys.loader(), toys.validation())
    with pytest.raises(ConnectionError):
        broken.fit(toys.StopAt(toys.loader(), 8), toys.validation())
    rest.fit(toys.loader(), toys.validation(), resume=True)
    plain = toys.trainer(epochs=2)
    plain.fit(toys.loader(), toys.validation())
    assert all(torch.equal(value, toys.weights(rest)[name]) for name, value in toys.weights(whole).items())
    assert not all(torch.equal(value, toys.weights(plain)[name]) for name, value in toys.weights(whole).items())


def test_batches_that_do_not_say_how_many_images_a_class_has_are_refused():
    class Bare:
        def __len__(self):
            return 1

        def epoch(self, epoch, start=0):
            yield from list(toys.loader().epoch(0))[:1]

    with pytest.raises(TrainingError, match=r"class_weights='balanced': .* accepted are batches with .* class_counts"):
        toys.trainer(epochs=1, loss=DML(), class_weights="balanced").fit(Bare())


def test_neutral_settings_leave_the_checksum():
    words = ["train.label_smoothing=0", "train.class_weights=none", "train.class_weights_beta=0.999"]
    assert Recipe.of({}, words).digest == Recipe.of({}).digest
    assert Recipe.of({}, ["train.class_weights=balanced"]).digest != Recipe.of({}).digest


@pytest.mark.parametrize("settings", [{"label_smoothing": 1.0}, {"class_weights": "inverse"}])
def test_nonsense_is_an_error(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        toys.trainer(**settings)


def test_float16_trains_with_scaled_gradients_and_resumes_to_the_same_bits(tmp_path):
    whole, broken, rest = (toys.trainer(tmp_path / name, 4, precision="16") for name in ("whole", "broken", "broken"))
    fitted = whole.fit(toys.loader(), toys.validation())
    assert next(whole.cohort.parameters()).dtype == torch.float32
    assert fitted.val.ensemble.accuracy > 0.5
    assert whole._run.updates.scaler.get_scale() > 1
    with pytest.raises(ConnectionError):
        broken.fit(toys.StopAt(toys.loader(), 8), toys.validation())
    rest.fit(toys.loader(), toys.validation(), resume=True)
    assert rest._run.updates.scaler.state_dict() == whole._run.updates.scaler.state_dict()
    assert all(torch.equal(value, toys.weights(rest)[name]) for name, value in toys.weights(whole).items())
