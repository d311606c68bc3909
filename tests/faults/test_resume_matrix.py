"""Every method, stopped at every kind of place and resumed: the whole state is that of a run that was not stopped.

Compared without tolerance: the bytes of the weights of networks and of the loss's parts and buffers, the optimizer's
state, the best peer, and the validation metrics of every epoch. Kills at random moments are another test.
"""

import os
import signal

import pytest
import torch

from metamixer import DML, Cohort, MetaMixer, Optim, Trainer
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.data import Augment, TrainLoader
from metamixer.losses.base import Loss
from metamixer.training.checkpoint import pointed, read_latest
from metamixer.training.interrupt import Interrupted
from tests import toys

EPOCHS, STEPS = 3, 5  # steps of an epoch
CASES = [*(("loss", name) for name in LOSSES), *(("mixer", name) for name in MIXERS)]
# A queue or a buffer, a game of two players with dropout, shadows, a part that is set up before each epoch, no state.
SAMPLE = [("loss", "pcl"), ("loss", "afd"), ("loss", "codistillation"), ("loss", "kdcl"), ("mixer", "metamixer")]


class Watching:
    """Keeps the metrics of every epoch, and stops the run at a given place."""

    def __init__(self, signal_at=None, raise_after_epoch=None):
        self.signal_at, self.raise_after_epoch, self.figures = signal_at, raise_after_epoch, {}

    def on_start(self, start): ...
    def on_end(self): ...

    def on_step(self, record):
        if record.step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch(self, record):
        self.figures[record.epoch] = record.val, record.terms, record.train_accuracy
        if record.epoch == self.raise_after_epoch:
            raise ConnectionError("after the evaluation")


class Validation:
    """Held-out batches; the power goes in the middle of one reading of them."""

    def __init__(self, fail_at=None):
        self.batches, self.fail_at, self.readings = toys.validation() * 2, fail_at, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.readings += 1
        for number, batch in enumerate(self.batches):
            if self.readings == self.fail_at and number == 1:
                raise ConnectionError("during the evaluation")
            yield batch


def trainer(kind, name, folder, *callbacks, seed=0):
    loss = LOSSES[name]() if kind == "loss" else DML(ramp_up=0.5)
    mixer = MetaMixer(local_probability=0.5) if kind == "loss" else MIXERS[name]()
    networks = [toys.network(seed) for seed in range(3 if "teacher" in loss.needs else 2)]
    if "trunk" in loss.needs:
        share_trunk(networks, "0")
    frozen = [2] if "teacher" in loss.needs else []
    cohort = Cohort(networks, stages=["0", "1"], frozen=frozen, shadows="shadows" in loss.needs)
    optim = Optim(lr=0.02, warmup=0.1, clip=5.0)
    return Trainer(
        cohort,
        mixer,
        loss,
        optim=optim,
        epochs=EPOCHS,
        seed=seed,
        accelerator="cpu",
        folder=folder,
        callbacks=callbacks,
    )


def loader(made):
    views = 2 if "views" in made.loss.needs else 1
    return TrainLoader(toys.images(), Augment(pad=1), [0.3], [0.2], 8, seed=0, companions=views == 1, views=views)


def whole_state(folder, made):
    """All that the last checkpoint holds and all that the trainer has in memory, to be compared with ``==``."""
    latest = read_latest(folder / "checkpoints")
    best = pointed(folder / "checkpoints", "BEST")
    return {
        "weights": (latest.path / "weights.safetensors").read_bytes(),
        "best weights": (best / "weights.safetensors").read_bytes(),
        "place": (latest.path.name, best.name),
        "state": as_bytes(latest.state),
        "cohort": as_bytes(made.cohort.state_dict()),
        "loss": as_bytes(made.loss.state_dict()),
    }


def as_bytes(value):
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: as_bytes(each) for key, each in value.items()}
    return [as_bytes(each) for each in value] if isinstance(value, list | tuple) else value


def assert_same(found, wanted):
    for part, value in wanted.items():
        assert found[part] == value, f"{part} differs"
    assert found.keys() == wanted.keys()


WHOLE = {}


@pytest.fixture
def whole(request, tmp_path_factory):
    """The run that was not stopped: made once for each method."""
    case = request.node.callspec.params["case"]
    if case not in WHOLE:
        folder, watching = tmp_path_factory.mktemp("whole"), Watching()
        made = trainer(*case, folder, watching)
        made.fit(loader(made), Validation())
        WHOLE[case] = whole_state(folder, made), watching.figures
    return WHOLE[case]


def stop_by_signal(step):
    def stop(case, folder):
        made = trainer(*case, folder, Watching(signal_at=step))
        with pytest.raises(Interrupted) as caught:
            made.fit(loader(made), Validation())
        assert caught.value.step == step == read_latest(folder / "checkpoints").state["step"]

    return stop


def stop_during_the_evaluation(case, folder):
    made = trainer(*case, folder)
    fail_at = 2 + (2 if type(made.loss).before_epoch is not Loss.before_epoch else 0)
    validation = Validation(fail_at)
    with pytest.raises(ConnectionError):
        made.fit(loader(made), validation)
    assert validation.readings == fail_at


def stop_after_the_evaluation(case, folder):
    made = trainer(*case, folder, Watching(raise_after_epoch=2))
    with pytest.raises(ConnectionError, match="after the evaluation"):
        made.fit(loader(made), Validation())


STOPS = {
    "mid-epoch": stop_by_signal(STEPS + 2),
    "epoch end": stop_by_signal(2 * STEPS),
    "during evaluation": stop_during_the_evaluation,
    "after evaluation": stop_after_the_evaluation,
    "last step": stop_by_signal(EPOCHS * STEPS),
}


def resumed_is_whole(case, stop, whole, folder):
    STOPS[stop](case, folder)
    watching = Watching()
    made = trainer(*case, folder, watching)
    made.fit(loader(made), Validation(), resume=True)
    assert_same(whole_state(folder, made), whole[0])
    assert watching.figures, "the last epoch is still to be told"
    for epoch, figures in watching.figures.items():
        assert figures == whole[1][epoch]


def finished_stays(case, whole, folder):
    made = trainer(*case, folder)
    made.fit(loader(made), Validation())
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    again, watching = trainer(*case, folder), Watching()
    again.callbacks = (watching,)
    fitted = again.fit(loader(again), Validation(), resume=True)
    assert (fitted.step, fitted.val) == (EPOCHS * STEPS, whole[1][EPOCHS][0])
    assert not watching.figures, "no epoch is trained again"
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert_same(whole_state(folder, again), whole[0])


def title(value):
    return " ".join(value) if isinstance(value, tuple) else value


ALL = [(case, stop) for case in CASES for stop in STOPS]
FEW = list(zip(SAMPLE, STOPS, strict=True))


@pytest.mark.parametrize(("case", "stop"), FEW, ids=title)
def test_a_sample_is_resumed_to_the_same_state(tmp_path, whole, case, stop):
    resumed_is_whole(case, stop, whole, tmp_path / "run")


@pytest.mark.parametrize("case", SAMPLE[:1], ids=title)
def test_a_finished_run_stays_as_it_is(tmp_path, whole, case):
    finished_stays(case, whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("case", "stop"), [each for each in ALL if each not in FEW], ids=title)
def test_every_method_is_resumed_to_the_same_state(tmp_path, whole, case, stop):
    resumed_is_whole(case, stop, whole, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", [case for case in CASES if case not in SAMPLE[:1]], ids=title)
def test_every_finished_run_stays_as_it_is(tmp_path, whole, case):
    finished_stays(case, whole, tmp_path / "run")


def test_what_a_resume_would_forget_is_seen(tmp_path):
    """The comparison can fail: another seed differs in every part but the place."""
    states = []
    for seed in (0, 1):
        made = trainer("loss", "codistillation", tmp_path / str(seed), seed=seed)
        made.fit(loader(made), Validation())
        states.append(whole_state(tmp_path / str(seed), made))
    assert states[0]["weights"] != states[1]["weights"]
    assert states[0]["state"] != states[1]["state"]
    with pytest.raises(AssertionError, match="differs"):
        assert_same(*states)
