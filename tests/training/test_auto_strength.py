"""Strength that follows the training: its formula, its bits after a resume, and the same strength in all processes."""

import json
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metamixer import Batch, CutMix, MetaMixer, NoMix
from metamixer.training.auto_strength import AutoStrength, overfitting, uncertainty
from metamixer.training.checkpoint import read_latest
from metamixer.training.interrupt import Interrupted
from metamixer.training.run_logger import Files
from metamixer.training.settings import TrainSettings
from metamixer.training.trainer import TrainingError
from tests import processes, toys
from tests.training.test_distributed import assert_equal, train
from tests.training.test_trainer import SignalAfter

EPOCHS = 12
MOVING = {"strength_target": 1.0, "strength_rise": 0.5, "strength_epochs": 1}
"""Settings of the toy with which its strength goes up and down, although it is short."""


IMAGES = (128, 64)  # training, validation


def report(accuracies, images):
    return SimpleNamespace(peers=[SimpleNamespace(accuracy=accuracy) for accuracy in accuracies], images=images)


def slow(pairs, target, rise, epochs, every, full):
    """The strengths after each validation, in exact fractions: a teacher's accuracy is left out."""
    strength, found = Fraction(0), []
    most = max(Fraction(0), min(Fraction(1), Fraction(3 * epochs - full, 2 * full)))
    for number, (train_of, val_of) in enumerate(pairs):
        bound = Fraction(target) * (number + 1) * every / epochs
        a, b = (sum(map(Fraction, values[:2])) / 2 for values in (train_of, val_of))
        r = (a - b) / (1 - b) if b != 1 else Fraction(0)
        error = Fraction(0)
        if b != 1:
            error = (a * (1 - a) / IMAGES[0] + (1 - r) ** 2 * b * (1 - b) / IMAGES[1]) / (1 - b) ** 2
        move = Fraction(every) / (Fraction(rise) * epochs)
        beyond = (r - bound) ** 2 - error  # both squared
        if beyond > 0 and r > bound:
            strength = min(most, strength + min(move, 1))
        elif beyond > 0:
            strength = max(Fraction(0), strength - min(move, 1))
        found.append((strength, r, beyond))
    return found


ACCURACIES = st.lists(st.integers(0, 64).map(lambda count: count / 64), min_size=3, max_size=3)


@given(
    st.lists(st.tuples(ACCURACIES, ACCURACIES), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0625, 0.25, 1.0]),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 100, 320, 512, 800]),
)
def test_the_strength_is_that_of_a_slow_loop(pairs, target, rise, every, full):
    settings = TrainSettings(
        epochs=256, validate_every=every, strength_target=target, strength_rise=rise, strength_epochs=full
    )
    made = AutoStrength(settings)
    before = 0.0
    for number, (wanted, r, beyond) in enumerate(slow(pairs, target, rise, 256, every, full)):
        known, new = (report(*values) for values in zip(pairs[number], IMAGES, strict=True))
        in_force, found = made.follow(lambda _, known=known: known, new, [0, 1], (number + 1) * every / 256)
        assert in_force == before
        assert found == pytest.approx(float(r), abs=1e-12)
        if beyond and abs(beyond) < 1e-12:
            return  # too close for numbers in float64
        before = made.value
        assert made.value == pytest.approx(float(wanted), abs=1e-12)


@pytest.mark.parametrize(("train_of", "val_of"), [(0.3, 0.25), (0.8, 0.4), (0.97, 0.5)])
def test_the_uncertainty_is_the_spread_of_draws(train_of, val_of):
    draws = np.random.default_rng(0)
    known, new = (draws.binomial(count, share, 20_000) / count for count, share in ((400, train_of), (300, val_of)))
    assert uncertainty(train_of, val_of, (400, 300)) == pytest.approx(((known - new) / (1 - new)).std(), rel=0.03)


def test_overfitting_of_what_all_know_is_none():
    assert overfitting(1.0, 1.0) == 0.0
    assert overfitting(0.5, 0.75) == -1.0
    assert uncertainty(0.5, 1.0, (10, 10)) == 0.0


def test_an_epoch_without_validation_moves_nothing():
    made = AutoStrength(TrainSettings(epochs=40, validate_every=4))
    made.value = 0.5
    assert made.follow(lambda _: pytest.fail("evaluated"), None, [0], 0.1) == (0.5, None)
    assert made.value == 0.5


class Seen:
    """A callback that keeps what each epoch says of strength."""

    def __init__(self):
        self.rows = []

    def on_start(self, start): ...
    def on_step(self, record): ...
    def on_end(self): ...

    def on_epoch(self, record):
        self.rows.append((record.strength, record.overfitting, record.val))


def auto(folder=None, **settings):
    mixer = settings.pop("mixer", MetaMixer(global_alpha=1.0, strength="auto"))
    return toys.trainer(folder, EPOCHS, mixer=mixer, **MOVING, **settings)


def held(noise, seed, dtype=torch.float32):
    """The images of the toy under noise: peers know them well or badly."""
    known = toys.images()
    noises = torch.randn(known.images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    images = (known.images / 255 / 0.2 + noise * noises).to(dtype)
    return [Batch(images[k : k + 8], known.labels[k : k + 8]) for k in range(0, 40, 8)]


def plain(dtype=torch.float32):
    return held(1.5, 2, dtype)


def validation(dtype=torch.float32):
    return held(3.0, 1, dtype)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder, seen = tmp_path_factory.mktemp("auto"), Seen()
    made = auto(folder, callbacks=[seen, Files(folder)])
    made.fit(toys.loader(), validation(), plain=plain())
    return made, seen.rows, folder


def test_the_strength_moves_by_what_is_measured(uninterrupted):
    """Every step again from what was written down; the last r from the peers as they are in the end."""
    made, rows, folder = uninterrupted
    strength, strengths = 0.0, []
    for epoch, (in_force, r, val) in enumerate(rows, 1):
        assert in_force == pytest.approx(strength, abs=1e-12)
        new = (val.peers[0].accuracy + val.peers[1].accuracy) / 2
        known, over = new + r * (1 - new), r - epoch / EPOCHS
        error = ((known * (1 - known) + (1 - r) ** 2 * new * (1 - new)) / 40) ** 0.5 / (1 - new)
        strength += (over > error) / (0.5 * EPOCHS) - (over < -error) / (0.5 * EPOCHS)
        strength = min(1.0, max(0.0, strength))
        strengths.append(strength)
    assert made._run.strength.value == pytest.approx(strength, abs=1e-12)
    assert any(one > other for one, other in pairwise(strengths)), "it never falls here"
    assert any(one < other for one, other in pairwise(strengths)), "it never rises here"
    known, new = (
        sum(score.accuracy for score in made.evaluate(batches).peers) / 2 for batches in (plain(), validation())
    )
    assert rows[-1][1] == pytest.approx((known - new) / (1 - new), abs=1e-12)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["strength"], line["overfitting"]) for line in lines] == [row[:2] for row in rows]
    assert "strength" in (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def test_the_mixer_is_handed_the_strength_of_its_epoch():
    handed = []

    @dataclass(frozen=True)
    class Looking(MetaMixer):
        def draw(self, draw):
            handed.append(draw.strength)
            return super().draw(draw)

    seen = Seen()
    auto(mixer=Looking(strength="auto"), callbacks=[seen]).fit(toys.loader(), validation(), plain=plain())
    assert handed == [row[0] for row in seen.rows for _ in range(5)]


def test_at_strength_0_it_is_a_training_without_mixing():
    """Where training images are no better known than others, MetaMixer costs nothing: to the last bit."""
    check_not_mixed(plain(), validation(), epochs=EPOCHS, strength_epochs=1)


@pytest.mark.parametrize(("epochs", "settings"), [(EPOCHS, {}), (5, {"strength_epochs": 15})])
def test_a_short_run_that_overfits_is_not_mixed(epochs, settings):
    """A third of the epochs that allow full strength, or fewer: to the last bit a training without mixing."""
    seen = check_not_mixed(validation(), plain(), epochs=epochs, strength_target=0, **settings)
    assert max(r for _, r, _ in seen.rows) > 0.2, "these peers do not overfit"


def test_a_run_of_medium_length_is_mixed_in_part():
    mixed = toys.trainer(
        epochs=6, strength_epochs=10, strength_target=0, strength_rise=0.1, mixer=MetaMixer(strength="auto")
    )
    mixed.fit(toys.loader(), validation(), plain=plain())
    assert mixed._run.strength.value == pytest.approx(0.4), "6 epochs of 10 may mix at (3 * 6 / 10 - 1) / 2"


def check_not_mixed(val, known, epochs, **settings):
    seen = Seen()
    mixed = toys.trainer(epochs=epochs, mixer=MetaMixer(strength="auto"), callbacks=[seen], **settings)
    mixed.fit(toys.loader(), val, plain=known)
    bare = toys.trainer(epochs=epochs, mixer=NoMix())
    bare.fit(toys.loader(), val)
    for name, value in toys.weights(mixed).items():
        assert torch.equal(value, bare.cohort.state_dict()[name]), name
    return seen


@pytest.mark.parametrize("crash_after", [0, 7, 10, 29, 33, 5 * EPOCHS - 1])
def test_resume_after_a_crash_gives_the_same_bits(tmp_path, uninterrupted, crash_after):
    with pytest.raises(ConnectionError):
        auto(tmp_path).fit(toys.StopAt(toys.loader(), crash_after + 1), validation(), plain=plain())
    check_resumed(tmp_path, uninterrupted)


@pytest.mark.parametrize("at", [1, 5, 24, 25, 26, 5 * EPOCHS])
def test_resume_after_a_signal_gives_the_same_bits(tmp_path, uninterrupted, at):
    made = auto(tmp_path, callbacks=[SignalAfter(at)], checkpoint_every=5)
    with pytest.raises(Interrupted):
        made.fit(toys.loader(), validation(), plain=plain())
    check_resumed(tmp_path, uninterrupted)


def check_resumed(folder, uninterrupted):
    first, rows, whole = uninterrupted
    seen = Seen()
    again = auto(folder, callbacks=[seen])
    again.fit(toys.loader(), validation(), plain=plain(), resume=True)
    assert seen.rows == rows[len(rows) - len(seen.rows) :]
    wanted = toys.weights(first)
    assert all(torch.equal(value, wanted[name]) for name, value in toys.weights(again).items())
    states = [read_latest(each / "checkpoints").state["strength"] for each in (folder, whole)]
    assert states[0] == states[1] == first._run.strength.value


def test_processes_agree(tmp_path):
    """Two processes, each with a share of every set of images, have the strengths of one."""
    wanted = _in_double(mixing_groups=2)
    strengths = [row[2] for row in wanted["epochs"]]
    assert len(set(strengths)) > 2
    for found in processes.together(tmp_path, 2, _in_double):
        assert [row[2] for row in found["epochs"]] in ([], strengths)  # callbacks look at the first process alone
        assert found["strength"] == wanted["strength"]
        assert_equal(found, wanted)


def _in_double(**more):
    sets = {"val": validation(torch.float64), "plain": plain(torch.float64)}
    return train("auto", "dml", epochs=EPOCHS, **sets, **MOVING, **more)


def test_what_does_not_fit_is_said():
    with pytest.raises(TrainingError, match=r"strength='auto' needs validation data \(val\); accepted without is"):
        auto().fit(toys.loader(), plain=plain())
    with pytest.raises(TrainingError, match=r"needs training images without augmentation \(plain\)"):
        auto().fit(toys.loader(), validation())
    with pytest.raises(TrainingError, match="can be gone through only once"):
        auto().fit(toys.loader(), validation(), plain=iter(plain()))
    wanted = "at least 10 validations, 40 epochs have 4; accepted: validate_every=4 or less"
    with pytest.raises(TrainingError, match=wanted):
        toys.trainer(epochs=40, validate_every=10, mixer=CutMix(strength="auto"))
    toys.trainer(epochs=40, validate_every=4, mixer=CutMix(strength="auto"))
    toys.trainer(epochs=3, mixer=CutMix(strength="auto"))
    toys.trainer(epochs=40, validate_every=10, mixer=CutMix(strength=0.5))
