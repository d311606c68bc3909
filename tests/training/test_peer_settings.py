"""Stages that do not learn for some epochs: to the bit, and the same for a run that was stopped."""

import pytest
import torch

from metamixer.training.peer_settings import PeerSettings
from metamixer.training.trainer import TrainingError
from tests import toys

FIRST = ("0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "0.1.running_mean", "0.1.running_var")


class Watch:
    """The weights after each epoch."""

    def __init__(self):
        self.epochs = []

    def on_start(self, start): ...
    def on_step(self, record): ...
    def on_end(self): ...

    def on_epoch(self, record):
        self.epochs.append({key: value.clone() for key, value in self.cohort.state_dict().items()})


def fit(folder=None, epochs=4, data=None, resume=False, **settings):
    watch = Watch()
    trainer = toys.trainer(folder, epochs, peers=[PeerSettings(**settings)], callbacks=[watch])
    watch.cohort = trainer.cohort
    begun = {key: value.clone() for key, value in trainer.cohort.state_dict().items()}
    trainer.fit(data or toys.loader(), toys.validation(), resume=resume)
    return trainer, begun, watch.epochs


def same(one, other, peer):
    return [key for key in FIRST if torch.equal(one[f"peers.{peer}.{key}"], other[f"peers.{peer}.{key}"])]


def test_what_is_frozen_stays_to_the_bit_and_learns_after_it():
    _, begun, epochs = fit(freeze=1, freeze_epochs=2)
    assert [len(same(begun, epoch, 0)) for epoch in epochs] == [6, 6, 0, 0]
    assert [len(same(begun, epoch, 1)) for epoch in epochs] == [0, 0, 0, 0]
    assert not torch.equal(begun["peers.0.1.0.weight"], epochs[0]["peers.0.1.0.weight"])
    _, begun, epochs = fit(freeze=1)
    assert len(same(begun, epochs[-1], 0)) == 6
    _, begun, epochs = fit(freeze=2, epochs=1)
    assert torch.equal(begun["peers.0.1.0.weight"], epochs[0]["peers.0.1.0.weight"])
    assert not torch.equal(begun["peers.0.4.weight"], epochs[0]["peers.0.4.weight"])


@pytest.mark.parametrize("step", [3, 5, 9, 10, 11, 17])
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, step):
    """Five steps an epoch; the first stage learns from the second epoch on."""
    whole, _, _ = fit(freeze=1, freeze_epochs=1)
    with pytest.raises(ConnectionError):
        fit(tmp_path, data=toys.StopAt(toys.loader(), step), freeze=1, freeze_epochs=1)
    again, _, _ = fit(tmp_path, resume=True, freeze=1, freeze_epochs=1)
    for name, value in toys.weights(whole).items():
        assert torch.equal(value, toys.weights(again)[name]), name
    momenta = [[trainer._run.optimizer.state[p] for p in trainer.cohort.parameters()] for trainer in (whole, again)]
    torch.testing.assert_close(*momenta, rtol=0, atol=0)


def test_all_settings_off_are_as_if_there_were_none():
    plain = toys.trainer(None, 2)
    plain.fit(toys.loader(), toys.validation())
    given, _, _ = fit(epochs=2)
    assert all(torch.equal(value, toys.weights(given)[name]) for name, value in toys.weights(plain).items())


def test_stages_that_do_not_exist():
    with pytest.raises(TrainingError, match=r"freeze: Sequential has \d stages, not 9"):
        fit(freeze=9)
    with pytest.raises(ValueError, match="freeze=-1"):
        PeerSettings(freeze=-1)
    with pytest.raises(ValueError, match="lr=0"):
        PeerSettings(lr=0)
