"""What follows a loss that is not finite and memory that is short."""

import copy
import warnings

import pytest
import torch
from torch import nn

from metamixer import DML, Batch, Cohort, NoMix, Optim, Trainer, total
from metamixer.cli.exit_codes import report_faults
from metamixer.core.seeding import derive
from metamixer.training.checkpoint import pointed, read
from metamixer.training.distributed import ProcessLost
from metamixer.training.optimizer import load_state, saved_state
from metamixer.training.optimizer_step import MOST_SKIPPED, DoesNotFit, NotFiniteError
from metamixer.training.settings import RunInfo
from metamixer.training.train_step import train_step
from metamixer.training.trainer import TrainingError
from tests import toys

STEPS = 5  # per epoch of the toy


class Spoilt(DML):
    """DML whose term of one peer, or the gradient alone, is not finite at some steps."""

    def __init__(self, at, value=float("nan"), gradient=False):
        super().__init__(ramp_up=0)
        self.at, self.value, self.gradient, self.calls = set(at), value, gradient, 0
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, outputs, targets, progress=None):
        terms = dict(super().forward(outputs, targets, progress))
        self.seen += 1
        self.calls += 1
        if self.calls in self.at:
            if self.gradient:  # the value is fine, its slope is not
                terms["task"] = terms["task"] + _Steep.apply(outputs.logits[1].sum(), self.value)
            else:
                terms["task"] = terms["task"] * torch.tensor([1.0, self.value])
        return terms


class _Steep(torch.autograd.Function):
    """Zero, with any slope."""

    @staticmethod
    def forward(ctx, x, slope):
        ctx.slope = slope
        return x * 0

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope, None


def trainer(loss, folder=None, epochs=2, **settings):
    settings.setdefault("optim", Optim(lr=0.05, warmup=0.0, schedule="constant", clip=5.0))
    return Trainer(
        toys.cohort(), NoMix(), loss, epochs=epochs, accelerator="cpu", folder=folder, names=("0 small", "1 small"),
        **settings,
    )  # fmt: skip


class Records:
    def __init__(self):
        self.steps, self.epochs = [], []

    def on_start(self, start): ...
    def on_end(self): ...

    def on_step(self, record):
        self.steps.append(record)

    def on_epoch(self, record):
        self.epochs.append(record)


def by_hand(steps, without=()):
    """The toy in a loop of its own: the cohort after so many steps, of which some were never made."""
    cohort = toys.cohort().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        [{"params": list(peer.parameters())} for peer in cohort.peers],
        lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True,
    )  # fmt: skip
    for step in set(range(steps)) - set(without):
        batch = next(toys.loader().epoch(step // STEPS, step % STEPS))
        torch.manual_seed(derive(0, "network", step, 0))
        terms = train_step(cohort, NoMix(), DML(ramp_up=0), batch).terms
        optimizer.zero_grad()
        total(terms).backward()
        for peer in cohort.peers:
            nn.utils.clip_grad_norm_(peer.parameters(), 5.0)
        optimizer.step()
    return cohort.state_dict()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_stop_names_the_term_the_peer_the_batch_and_the_rate_before_the_update(tmp_path, value):
    made = trainer(Spoilt([8], value), tmp_path)
    with pytest.raises(NotFiniteError) as caught:
        made.fit(toys.loader())
    assert str(caught.value).startswith(
        f"the term 'task' of peer 1 small became {value} in step 8 (epoch 2, batch 3, learning rate 0.05): "
    )
    last = pointed(tmp_path / "checkpoints", "LATEST")
    assert str(caught.value).endswith(f"; the last good checkpoint is {last}")
    assert read(last).state["step"] == STEPS
    wanted = by_hand(7)
    for name, weight in made.cohort.named_parameters():
        assert torch.equal(weight, wanted[name]), name


@pytest.mark.parametrize("gradient", [False, True])
def test_a_skipped_step_changes_nothing(gradient):
    """All other steps are those of a run that never saw that batch: weights, statistics, the loss's buffer."""
    seen = Records()
    made = trainer(Spoilt([4], float("inf"), gradient), epochs=1, on_nonfinite="skip", callbacks=[seen])
    what = "the gradient of peer 1" if gradient else "the term 'task' of peer 1 small"
    with pytest.warns(
        RuntimeWarning, match=f"{what} became (inf|nan) in step 4 .epoch 1, batch 4, learning rate 0.05.: skipped"
    ):
        made.fit(toys.loader())
    assert seen.epochs[0].skipped == 1
    assert seen.epochs[0].flat()["skipped"] == 1
    assert [dict(record.terms) == {} for record in seen.steps] == [False, False, False, True, False]
    assert made.loss.seen == 4

    wanted = by_hand(5, without=[3])
    for name, value in made.cohort.state_dict().items():
        assert torch.equal(value, wanted[name]), name


def test_backoff_halves_the_rate_for_good_and_across_a_resume(tmp_path):
    seen, later = Records(), Records()
    first = trainer(Spoilt([2, 4]), tmp_path, epochs=1, on_nonfinite="backoff", callbacks=[seen])
    with (
        pytest.warns(RuntimeWarning, match="the learning rate is 0.5 of the schedule's from now on"),
        pytest.warns(RuntimeWarning, match="the learning rate is 0.25 of the schedule's from now on"),
    ):
        first.fit(toys.loader())
    assert [record.lr for record in seen.steps] == [0.05, 0.05, 0.025, 0.025, 0.0125]
    trainer(Spoilt([]), tmp_path, epochs=2, on_nonfinite="backoff", callbacks=[later]).fit(toys.loader(), resume=True)
    assert [record.lr for record in later.steps] == [0.0125] * STEPS


def test_too_many_skipped_steps_stop_the_training():
    made = trainer(Spoilt(range(3, 100)), epochs=10, on_nonfinite="skip")
    stopped = f"in step {3 + MOST_SKIPPED} .*and so did the {MOST_SKIPPED} steps before"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(NotFiniteError, match=stopped):
            made.fit(toys.loader())
    assert len(said) == MOST_SKIPPED


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    """The last update of an epoch may spoil weights while its loss was fine."""
    made = trainer(DML(ramp_up=0), tmp_path, epochs=3)
    made.callbacks = (_Spoils(made.cohort, 2 * STEPS),)
    with pytest.raises(
        NotFiniteError, match=r"cohort\.peers\.1\.0\.0\.weight is not finite after step 10: no checkpoint"
    ) as caught:
        made.fit(toys.loader(), None)
    assert "the last good checkpoint is" in str(caught.value)
    assert read(pointed(tmp_path / "checkpoints", "LATEST")).state["step"] == STEPS


class _Spoils:
    def __init__(self, cohort, at):
        self.cohort, self.at = cohort, at

    def on_start(self, start): ...
    def on_end(self): ...
    def on_epoch(self, record): ...

    def on_step(self, record):
        if record.step == self.at:
            with torch.no_grad():
                self.cohort.peers[1][0][0].weight[0, 0, 0, 0] = float("inf")


class Memory(nn.Module):
    """A network for which only so many images fit."""

    def __init__(self, most, error):
        super().__init__()
        self.inner, self.most, self.error = toys.network(0), most, error

    def forward(self, x):
        if len(x) > self.most and self.training:
            raise self.error
        return self.inner(x)


CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: 9 B"
)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), CPU_ERROR, MemoryError()], ids=repr)
@pytest.mark.parametrize(
    ("most", "said"),
    [
        (4, r"out of memory with 8 images of 1x8x8 at a time on cpu: train.micro_batches=2 fits, as a trial has just "
            r"shown; it computes the batch in parts of 4, and so would train.batch_size=4"),
        (1, "train.micro_batches=8 fits, .* in parts of 1"),
        (0, "not even one image at a time fits"),
    ],
)  # fmt: skip
def test_memory_that_is_short(most, said, error):
    cohort = Cohort([Memory(most, error), toys.network(1)], stages=[["inner.0", "inner.1"], ["0", "1"]])
    with pytest.raises(DoesNotFit, match=said):
        Trainer(cohort, NoMix(), DML(), epochs=1, accelerator="cpu").fit(toys.loader())


def test_what_the_trial_says_is_so():
    cohort = Cohort([Memory(4, MemoryError()), toys.network(1)], stages=[["inner.0", "inner.1"], ["0", "1"]])
    Trainer(cohort, NoMix(), DML(), epochs=1, accelerator="cpu", micro_batches=2).fit(toys.loader())


def test_other_errors_stay_what_they_are():
    cohort = Cohort([Memory(0, RuntimeError("a bug")), toys.network(1)], stages=[["inner.0", "inner.1"], ["0", "1"]])
    with pytest.raises(RuntimeError, match="a bug"):
        Trainer(cohort, NoMix(), DML(), epochs=1, accelerator="cpu").fit(toys.loader())


@pytest.mark.parametrize(
    ("error", "code"),
    [(DoesNotFit("no room"), 75), (ProcessLost("gone"), 75), (NotFiniteError("nan"), 65), (TrainingError("x"), 65)],
)
def test_exit_codes(error, code, capsys):
    @report_faults
    def command():
        raise error

    assert command() == code
    assert str(error) in capsys.readouterr().err


def test_images_and_labels_that_cannot_be_learned_are_said_before_the_first_step():
    class Odd:
        def __init__(self, batch):
            self.batch = batch

        def __len__(self):
            return 1

        def epoch(self, epoch, start=0):
            yield self.batch

    images = torch.zeros(4, 1, 8, 8)
    images[2, 0, 0, 0] = float("nan")
    for batch, said in (
        (Batch(images, torch.zeros(4, dtype=torch.int64)), "images with values that are infinite or NaN in the first"),
        (Batch(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, -1, 2])), "a label -1; accepted: 0 to 2"),
        (Batch(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 3, 2])), "a label 3; accepted: 0 to 2"),
    ):
        with pytest.raises(TrainingError, match=said):
            trainer(DML()).fit(Odd(batch))


class Later:
    """The toy's batches, of which the fourth is another one."""

    def __init__(self, change):
        self.inner, self.change = toys.loader(), change

    def __len__(self):
        return len(self.inner)

    def epoch(self, epoch, start=0):
        for number, batch in enumerate(self.inner.epoch(epoch, start), start):
            yield self.change(batch) if number == 3 else batch


def _spoil_images(batch):
    images = batch.images.clone()
    images[5, 0, 0, 0] = float("inf")
    return Batch(images, batch.labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            _spoil_images,
            r"the images in rows 5 of the batch hold values that are infinite or NaN in step 4 \(epoch 1, b",
        ),
        (lambda batch: Batch(batch.images, batch.labels + 1), r"a label 3; accepted: 0 to 2.* \(epoch 1, batch 4\)"),
        (lambda batch: Batch(batch.images, batch.labels - 1), r"a label -1; accepted: 0 to 2.* \(epoch 1, batch 4\)"),
    ],
)
def test_images_and_labels_that_come_later_are_named_with_their_batch(change, said):
    with pytest.raises(TrainingError, match=said):
        trainer(DML()).fit(Later(change))


def test_networks_with_other_outputs_than_classes():
    with pytest.raises(TrainingError, match=r"\(0 small, 1 small\) have outputs for 3 classes, the data have 10"):
        trainer(DML(), info=RunInfo(classes=10)).fit(toys.loader())


def test_an_optimizer_s_state_is_found_by_owner():
    made = toys.cohort()
    optimizer = Optim(name="adamw").build(made, nn.Linear(2, 2))
    for weight in made.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    saved = saved_state(optimizer)
    assert set(saved) == {"peer 0", "peer 1", "the loss"}
    alone = copy.deepcopy(made)
    alone.peers[0] = nn.Identity()
    other = Optim(name="adamw").build(alone, nn.ReLU())
    load_state(other, saved)
    for own, wanted in zip(saved_state(other)["peer 1"], saved["peer 1"], strict=True):
        assert own.keys() == wanted.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, wanted[name]) for name, value in own.items())
    with pytest.raises(ValueError, match="no optimizer state for the weights of peer 1"):
        load_state(other, {"peer 0": saved["peer 0"]})
