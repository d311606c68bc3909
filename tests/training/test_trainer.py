"""The loop: it learns, it resumes to the same bits, it stops when asked."""

import copy
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from metamixer import DML, Batch, Cohort, Independent, MetaMixer, NoMix, Optim, Trainer, total
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.core.seeding import derive, generator
from metamixer.data import Augment, TrainLoader
from metamixer.losses import LMCL, MCL
from metamixer.training.callbacks import flat_row
from metamixer.training.checkpoint import CheckpointError, pointed, read_latest
from metamixer.training.interrupt import Interrupted
from metamixer.training.run_logger import Files
from metamixer.training.settings import RunInfo
from metamixer.training.trackers import trackers
from metamixer.training.train_step import train_step
from metamixer.training.trainer import TrainingError
from tests import toys

STEPS = 5  # per epoch of the toy
EPOCHS = 4


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    made = toys.trainer(folder, EPOCHS)
    fitted = made.fit(toys.loader(), toys.validation())
    state = read_latest(folder / "checkpoints").state
    return toys.weights(made), fitted, state


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_same_state(first, second):
    """Whole states, nested, to the last bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key, value in first.items():
            assert_same_state(value, second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_state(one, other)
    else:
        assert first == second


def test_the_toy_is_learnt(uninterrupted):
    _, fitted, _ = uninterrupted
    assert fitted.step == EPOCHS * STEPS
    assert fitted.val is not None
    assert fitted.val.ensemble.accuracy > 0.6


def test_equals_a_loop_written_by_hand():
    """Fabric, sums and callbacks change no bit of what the plain loop computes."""
    made = toys.trainer(epochs=2)
    made.fit(toys.loader())
    cohort = toys.cohort().to(memory_format=torch.channels_last)
    loss, settings = made.loss, made.optim
    optimizer = torch.optim.SGD(
        [{"params": list(peer.parameters())} for peer in cohort.peers],
        lr=1.0, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True,
    )  # fmt: skip
    step, steps = 0, 2 * STEPS
    for epoch in range(2):
        for batch in toys.loader().epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step / steps)
            torch.manual_seed(derive(0, "network", step, 0))
            done = train_step(cohort, made.mixer, loss, batch, generator(0, "mix", step, 0), step / steps)
            optimizer.zero_grad()
            total(done.terms).backward()
            for peer in cohort.peers:
                nn.utils.clip_grad_norm_(peer.parameters(), 5.0)
            optimizer.step()
            step += 1
    assert_same_bits(toys.weights(made), cohort.state_dict())


@pytest.mark.parametrize("crash_after", [0, 1, STEPS, STEPS + 2, 2 * STEPS, EPOCHS * STEPS - 1])
def test_resume_after_a_crash_gives_the_same_bits(tmp_path, uninterrupted, crash_after):
    first = toys.trainer(tmp_path, EPOCHS)
    with pytest.raises(ConnectionError):
        first.fit(toys.StopAt(toys.loader(), crash_after + 1), toys.validation())  # one batch is for the dry run
    second = toys.trainer(tmp_path, EPOCHS)
    fitted = second.fit(toys.loader(), toys.validation(), resume=True)
    assert_same_bits(uninterrupted[0], toys.weights(second))
    assert_same_state(uninterrupted[2], read_latest(tmp_path / "checkpoints").state)
    assert fitted.best == uninterrupted[1].best


class SignalAfter:
    """A callback that sends this process a signal after a step."""

    def __init__(self, step, number=signal.SIGTERM):
        self.at, self.number = step, number

    def on_start(self, start): ...
    def on_epoch(self, record): ...
    def on_end(self): ...

    def on_step(self, record):
        if record.step == self.at:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("at", [1, STEPS - 1, STEPS, STEPS + 1, EPOCHS * STEPS])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_after_the_running_step_and_resume_continues(tmp_path, uninterrupted, at, number):
    first = toys.trainer(tmp_path, EPOCHS, callbacks=[Files(tmp_path), SignalAfter(at, number)])
    with pytest.raises(Interrupted) as stopped:
        first.fit(toys.loader(), toys.validation())
    assert (stopped.value.step, stopped.value.signal) == (at, number)
    assert read_latest(tmp_path / "checkpoints").state["step"] == at
    second = toys.trainer(tmp_path, EPOCHS, callbacks=[Files(tmp_path)])
    fitted = second.fit(toys.loader(), toys.validation(), resume=True)
    assert_same_bits(uninterrupted[0], toys.weights(second))
    assert_same_state(uninterrupted[2], read_latest(tmp_path / "checkpoints").state)
    assert fitted.best == uninterrupted[1].best
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [1, 2, 3, 4]


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    toys.trainer(tmp_path, EPOCHS).fit(toys.loader(), toys.validation())
    again = toys.trainer(tmp_path, EPOCHS)
    fitted = again.fit(toys.loader(), toys.validation(), resume=True)
    assert_same_bits(uninterrupted[0], toys.weights(again))
    assert fitted.val == uninterrupted[1].val


def test_checkpoint_callbacks_and_validation_do_not_touch_training(tmp_path, uninterrupted):
    made = toys.trainer(tmp_path, EPOCHS, checkpoint_every=3, validate_every=3, callbacks=[Files(tmp_path)])
    made.fit(toys.loader(), toys.validation())
    assert_same_bits(uninterrupted[0], toys.weights(made))


def _train_and_be_killed(folder: str, delay: float) -> None:
    torch.set_num_threads(1)
    threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    toys.trainer(Path(folder), EPOCHS, callbacks=[Files(Path(folder))]).fit(
        toys.loader(), toys.validation(), resume=True
    )


class Slow:
    """A loader whose batches take a while."""

    def __init__(self, inner, seconds, reading=None):
        self.inner, self.seconds = inner, seconds
        if reading:
            self.reading = reading

    def __len__(self):
        return len(self.inner)

    def epoch(self, epoch, start=0):
        for batch in self.inner.epoch(epoch, start):
            time.sleep(self.seconds)
            yield batch


@pytest.mark.parametrize("reading", ["disk", "workers", None])
def test_both_sides_of_the_speed_are_reported(tmp_path, reading):
    seen = []

    class Looking(Files):
        def on_start(self, start):
            super().on_start(start)
            seen.append(start.reading)

        def on_epoch(self, record):
            super().on_epoch(record)
            seen.append(record)

    toys.trainer(epochs=1, callbacks=[Looking(tmp_path)]).fit(Slow(toys.loader(), 0.05, reading))
    began, record = seen
    assert began == record.reading == (reading or "")
    images, trained = 40, 40 / record.images_per_second
    waited = record.waiting * trained
    assert STEPS * 0.05 <= waited < trained
    assert record.compute_images_per_second == pytest.approx(images / (trained - waited))
    if reading == "disk":
        assert record.data_images_per_second == pytest.approx(images / waited)
    else:
        assert record.data_images_per_second is None
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert "flat" not in row, "each number stands there once"
    assert ("data_images_per_second" in row) == (reading == "disk")
    assert flat_row(row) == record.flat(), "metrics.csv is made again from it"


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_any_moment_then_resume_gives_the_same_bits(tmp_path, uninterrupted, seed):
    """Real kills, also while a checkpoint is written; every child resumes what the one before it left."""
    draw = torch.Generator().manual_seed(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["metamixer"])
    for _ in range(3):
        delay = 0.02 + 0.5 * float(torch.rand((), generator=draw))
        child = context.Process(target=_train_and_be_killed, args=(str(tmp_path), delay))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
    last = toys.trainer(tmp_path, EPOCHS, callbacks=[Files(tmp_path)])
    last.fit(toys.loader(), toys.validation(), resume=True)
    assert_same_bits(uninterrupted[0], toys.weights(last))
    assert_same_state(uninterrupted[2], read_latest(tmp_path / "checkpoints").state)


def test_a_frozen_peer_stays_as_it_is():
    teacher, student = toys.network(0), toys.network(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    made = Trainer(
        Cohort([teacher, student], stages=["0", "1"], frozen=[0]), NoMix(), Independent(), epochs=1, accelerator="cpu"
    )
    fitted = made.fit(toys.loader(), toys.validation())
    assert_same_bits(before, teacher.state_dict())
    assert fitted.best.peer == 1


def test_a_peer_that_cannot_take_the_images_is_named_before_the_first_step():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    made = Trainer(
        Cohort([toys.network(0), network], stages=[["0", "1"], ["1"]]),
        NoMix(), Independent(), epochs=1, accelerator="cpu", names=["first", "second"],
    )  # fmt: skip
    with pytest.raises(TrainingError, match="peer second cannot take images of 1×8×8"):
        made.fit(toys.loader())


def test_a_loss_that_is_not_finite_is_named():
    made = toys.trainer(epochs=1)
    with torch.no_grad():
        made.cohort.peers[1][4].weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match=r"of peer 1 became (nan|inf) in step 1"):
        made.fit(toys.loader())


def test_a_label_out_of_range_is_said_before_the_first_step():
    class Wrong:
        def __len__(self):
            return 1

        def epoch(self, epoch, start=0):
            yield Batch(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))

    with pytest.raises(TrainingError, match="label 3; accepted: 0 to 2"):
        toys.trainer(epochs=1).fit(Wrong())


def test_checkpoints_of_another_recipe_are_refused(tmp_path):
    toys.trainer(tmp_path, 1, info=RunInfo({"recipe": "abc"})).fit(toys.loader())
    with pytest.raises(CheckpointError, match="recipe abc, this run has xyz"):
        toys.trainer(tmp_path, 1, info=RunInfo({"recipe": "xyz"})).fit(toys.loader(), resume=True)


def test_best_and_latest_are_kept_and_others_pruned(tmp_path):
    toys.trainer(tmp_path, 6).fit(toys.loader(), toys.validation())
    folder = tmp_path / "checkpoints"
    kept = {path.name for path in folder.glob("step-*")}
    assert pointed(folder, "LATEST").name == f"step-{6 * STEPS:08d}-whole"
    assert pointed(folder, "BEST").name in kept
    assert len(kept) <= 3


def test_clipping_is_per_peer():
    """A peer with huge gradients does not slow the other."""
    results = []
    for scale in (1.0, 1e3):
        made = Trainer(
            toys.cohort(), NoMix(), Independent(), optim=Optim(lr=0.05, clip=0.5), epochs=1, accelerator="cpu"
        )
        with torch.no_grad():
            made.cohort.peers[0][4].weight.mul_(scale)
        made.fit(toys.loader())
        results.append(made.cohort.peers[1].state_dict())
    assert_same_bits(*results)


def test_bf16_learns_with_float32_weights():
    made = toys.trainer(epochs=4, precision="bf16")
    fitted = made.fit(toys.loader(), toys.validation())
    assert next(made.cohort.parameters()).dtype == torch.float32
    assert fitted.val.ensemble.accuracy > 0.5


def test_a_second_interrupt_stops_at_once():
    class Twice(SignalAfter):
        def on_step(self, record):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        toys.trainer(epochs=1, callbacks=[Twice(0)]).fit(toys.loader())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_dropout_in_threads_is_an_error_of_the_training():
    cohort = Cohort([toys.network(0), toys.network(1)], stages=["0", "1"], parallel="threads")
    with pytest.raises(TrainingError, match="a peer draws random numbers as it trains"):
        Trainer(cohort, NoMix(), Independent(), epochs=1, accelerator="cpu").fit(toys.loader())


def test_peers_in_threads_resume_to_the_same_bits(tmp_path):
    def trainer(folder, epochs=3):
        torch.manual_seed(0)
        cohort = Cohort([toys.network(seed, dropout=0.0) for seed in range(2)], stages=["0", "1"], parallel="threads")
        callbacks = [SignalAfter(7)] if folder.name == "stopped" and not folder.exists() else []
        return Trainer(cohort, MetaMixer(), DML(), epochs=epochs, accelerator="cpu", folder=folder, callbacks=callbacks)

    whole = trainer(tmp_path / "whole")
    whole.fit(toys.loader())
    with pytest.raises(Interrupted):
        trainer(tmp_path / "stopped").fit(toys.loader())
    resumed = trainer(tmp_path / "stopped")
    resumed.fit(toys.loader(), resume=True)
    assert_same_bits(resumed.cohort.state_dict(), whole.cohort.state_dict())


@pytest.mark.parametrize("loss", [MCL, LMCL])
def test_resume_with_parts_of_a_loss_with_views_and_with_batches_of_classes(tmp_path, loss):
    data = TrainLoader(toys.images(), Augment(pad=1), [0.3], [0.2], 6, seed=0, views=2, per_class=2)
    whole, broken, resumed = (
        toys.trainer(tmp_path / name, 2, loss=loss(width=8), mixer=NoMix()) for name in ("whole", "broken", "broken")
    )
    whole.fit(data)
    with pytest.raises(ConnectionError):
        broken.fit(toys.StopAt(data, 1 + len(data) + 2))
    resumed.fit(data, resume=True)
    assert_same_bits(toys.weights(whole), toys.weights(resumed))
    assert_same_bits(whole.loss.state_dict(), resumed.loss.state_dict())


def test_alternating_updates_are_those_of_one_peer_after_the_other():
    """DML's Algorithm 1: each peer learns from predictions that the peers before it have already improved."""
    optim = Optim(lr=0.05, momentum=0.9, weight_decay=1e-3, warmup=0.1, clip=None)
    networks = [toys.network(seed, dropout=0.0) for seed in range(3)]
    slow = copy.deepcopy(networks)
    trained = Cohort(networks, stages=["0", "1"])
    trainer = Trainer(trained, NoMix(), DML(ramp_up=0), optim=optim, epochs=2, accelerator="cpu", update="alternating")
    trainer.fit(toys.loader())

    rules = [
        torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3, nesterov=optim.nesterov)
        for network in slow
    ]
    batches, steps = toys.loader(), 0
    for epoch in range(2):
        for batch in batches.epoch(epoch, 0):
            rate = optim.rate(steps / (2 * len(batches)))
            for peer, rule in enumerate(rules):
                logits = [network.train()(batch.images) for network in slow]
                objective = torch.nn.functional.cross_entropy(logits[peer], batch.labels)
                for other in range(3):
                    if other != peer:
                        objective = objective + slow_divergence(logits[other].detach(), logits[peer]) / 2
                rule.zero_grad()
                objective.backward(inputs=list(slow[peer].parameters()))
                rule.param_groups[0]["lr"] = rate
                rule.step()
            steps += 1
    for peer, network in zip(trained.peers, slow, strict=True):
        for own, wanted in zip(peer.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def slow_divergence(teacher, student):
    p, q = teacher.softmax(-1), student.softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def test_alternating_updates_are_for_networks_of_their_own():
    networks = [toys.network(seed, dropout=0.0) for seed in range(3)]
    share_trunk(networks[:2], "0")  # the third stands beside them, so that no stage is shared by all
    with pytest.raises(TrainingError, match="shared trunk"):
        Trainer(Cohort(networks, stages=["0", "1"]), NoMix(), DML(), epochs=1, accelerator="cpu", update="alternating")


def test_training_continues_without_tensorboard(tmp_path, uninterrupted):
    """The event file is a view; what cannot be done without, metrics.jsonl, is there."""
    (tmp_path / "events").write_text("in the way")
    made = toys.trainer(tmp_path, EPOCHS, callbacks=[Files(tmp_path), *trackers(["tensorboard"], tmp_path, {})])
    with pytest.warns(UserWarning, match="no more metrics for tensorboard .* training continues") as said:
        made.fit(toys.loader(), toys.validation())
    assert len([warning for warning in said if "tensorboard" in str(warning.message)]) == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == EPOCHS
    assert_same_bits(toys.weights(made), uninterrupted[0])
