"""Averaged weights: those of a slow loop, evaluated and deployed, and the same after a resume."""

import pytest
import safetensors.torch
import torch

from metamixer.config.recipe import Recipe
from metamixer.runs.run import evaluate_run, train
from metamixer.training.settings import TrainSettings
from tests import toys


class Watch:
    """The peers after every step."""

    def __init__(self):
        self.trainer, self.states = None, []

    def on_start(self, start):
        self.states.append(self.copy())

    def on_step(self, record):
        self.states.append(self.copy())

    def on_epoch(self, record): ...
    def on_end(self): ...

    def copy(self):
        return {name: value.clone() for name, value in self.trainer.cohort.peers.state_dict().items()}


def test_the_average_is_that_of_a_slow_loop():
    watch = Watch()
    made = watch.trainer = toys.trainer(epochs=3, ema=0.6, callbacks=[watch])
    fitted = made.fit(toys.loader(), toys.validation())
    average = {name: value.double() for name, value in watch.states[0].items()}
    for step, state in enumerate(watch.states[1:], start=1):
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in state.items():
            whole = not value.is_floating_point()
            average[name] = value.double() if whole else decay * average[name] + (1 - decay) * value.double()
    found = made._run.learner.average.module.state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
    learned = watch.copy()
    assert all(torch.equal(value, learned[name]) for name, value in watch.states[-1].items()), (
        "evaluation put them back"
    )
    averaged, plain = made.evaluate(toys.validation()), made.evaluate(toys.validation(), averaged=False)
    assert averaged == fitted.val
    assert averaged.ensemble.nll != plain.ensemble.nll


def test_the_average_changes_nothing_that_learns_and_resumes_to_the_same_bits(tmp_path):
    plain = toys.trainer(epochs=2)
    plain.fit(toys.loader(), toys.validation())
    whole, broken, rest = (toys.trainer(tmp_path / name, 2, ema=0.9) for name in ("whole", "broken", "broken"))
    whole.fit(toys.loader(), toys.validation())
    with pytest.raises(ConnectionError):
        broken.fit(toys.StopAt(toys.loader(), 8), toys.validation())
    rest.fit(toys.loader(), toys.validation(), resume=True)
    assert all(torch.equal(value, toys.weights(whole)[name]) for name, value in toys.weights(plain).items())
    wanted = whole._run.learner.state_dict()
    assert any(name.startswith("average.") for name in wanted)
    assert all(torch.equal(value, wanted[name]) for name, value in rest._run.learner.state_dict().items())


@pytest.mark.timeout(240)
def test_a_run_evaluates_and_deploys_the_averaged_peers(tmp_path):
    peer = {"name": "resnet8", "widths": [2, 2, 4, 4]}
    words = ["data.train_limit=12", "train.batch_size=40", "optim.lr=0.05", "train.epochs=2", "train.ema=0.9"]
    recipe = Recipe.of({"peers": [peer, peer]}, words)
    result = train(recipe, tmp_path / "run")
    assert evaluate_run(tmp_path / "run").as_dict() == result.last.as_dict()
    best = evaluate_run(tmp_path / "run", "test", "BEST").peers[result.best.peer]
    assert (best.accuracy, best.nll) == (result.deployed.accuracy, pytest.approx(result.deployed.nll))
    (weights,) = (tmp_path / "run" / "checkpoints").glob(
        f"{(tmp_path / 'run' / 'checkpoints' / 'BEST').read_text().strip()}/weights.safetensors"
    )
    kept = safetensors.torch.load_file(weights)
    deployed = safetensors.torch.load_file(result.model)
    name = next(name for name in deployed if name.endswith("weight"))
    assert torch.equal(deployed[name], kept[f"average.module.{result.best.peer}.{name}"])
    assert not torch.equal(deployed[name], kept[f"cohort.peers.{result.best.peer}.{name}"])


@pytest.mark.parametrize("decay", [0.0, 1.0, -1])
def test_nonsense_is_an_error(decay):
    with pytest.raises(ValueError, match="ema"):
        TrainSettings(ema=decay)
