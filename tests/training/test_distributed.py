"""Runs of several processes: what they compute is what one process computes, and none waits for one that is gone."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
from torch import nn

from metamixer import Cohort, CutMix, ManifoldMixup, MetaMixer, NoMix, Optim, Trainer
from metamixer.core.types import Batch
from metamixer.data import Augment, TrainLoader
from metamixer.losses import DML, KDCL, MCL, PCL, Codistillation, CutnMixLoss, Independent, OKDDip
from metamixer.mixers import CutnMix
from metamixer.runs.run import evaluate_run
from metamixer.training import trainer
from metamixer.training.checkpoint import pointed, read
from metamixer.training.distributed import ProcessGrid
from metamixer.training.interrupt import Interrupted
from metamixer.training.peer_settings import PeerSettings
from metamixer.training.trainer import TrainingError
from tests import processes, toys


def network(seed, width=6):
    """Group norm instead of batch norm: nothing in it depends on which images are computed together."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GroupNorm(2, width), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(width * 16, 3),
    )


class Double:
    """Training data in double precision."""

    def __init__(self, inner):
        self.inner, self.class_counts = inner, inner.class_counts

    def __len__(self):
        return len(self.inner)

    def epoch(self, epoch, start=0):
        for batch in self.inner.epoch(epoch, start):
            companions = None if batch.companions is None else batch.companions.double()
            views = None if batch.views is None else tuple(view.double() for view in batch.views)
            yield Batch(batch.images.double(), batch.labels, companions, views, batch.whole)


class DoubleShared(Double):
    """The same, of which a process reads its share alone."""

    def shared(self, number, parts):
        return Double(self.inner.shared(number, parts))


def validation():
    held = toys.images(13)
    images = held.images.double() / 255 / 0.2
    return [Batch(images[start : start + 4], held.labels[start : start + 4]) for start in (0, 4, 8, 12)]


MIXERS = {
    "metamixer": lambda: MetaMixer(local_probability=0.7),
    "inside": lambda: MetaMixer(local_probability=0.7, stage_draws=2),
    "samples": lambda: ManifoldMixup(lam="sample"),
    "boxes": lambda: CutMix(box="sample"),
    "cutnmix": lambda: CutnMix(peers=2),
    "none": NoMix,
    "auto": lambda: MetaMixer(local_probability=0.7, strength="auto"),
}
LOSSES = {
    "dml": DML,
    "kdcl": lambda: KDCL("linear"),
    "kdcl-general": KDCL,
    "okddip": OKDDip,
    "pcl": PCL,
    "mcl": lambda: MCL(width=8),
    "codistillation": lambda: Codistillation(interval=3),
    "cutnmix": CutnMixLoss,
    "independent": Independent,
}


def train(
    mixer, loss, batch=8, peers=2, folder=None, epochs=2, resume=False, reading=DoubleShared, held=4, val=None,
    plain=None, each=(), **settings,
):  # fmt: skip
    """Weights, progress and validation of a short training in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        made_loss = LOSSES[loss]()
        cohort = Cohort(
            [network(seed, 6 + 2 * (seed % 2)) for seed in range(peers)],
            stages=["0", "1"],
            shadows=bool(getattr(made_loss, "shadows", "")),
        ).double()
        views = peers if "views" in getattr(made_loss, "needs", ()) else 1
        per_class = 2 if "per-class" in getattr(made_loss, "needs", ()) else None
        batch = 6 if per_class else batch  # two images of each of three classes
        data = TrainLoader(
            toys.images(), Augment(pad=1), [0.3], [0.2], batch, 0, companions=mixer != "inside", views=views,
            per_class=per_class,
        )  # fmt: skip
        seen = Seen()
        trainer = Trainer(
            cohort, MIXERS[mixer](), made_loss, optim=Optim(lr=0.05, clip=1.0), epochs=epochs, accelerator="cpu",
            folder=folder, callbacks=[seen], peers=each, **settings,
        )  # fmt: skip
        fitted = trainer.fit(reading(data), val or validation()[:held], plain=plain, resume=resume)
    finally:
        torch.set_default_dtype(before)
    weights = {name: value.clone() for name, value in trainer._run.learner.state_dict().items()}
    exchange = cohort._exchange
    moments = [value for state in trainer._run.optimizer.state.values() for value in state.values()]
    return {
        "weights": weights,
        "held": sum(value.numel() for value in [*weights.values(), *moments]),
        "epochs": seen.epochs,
        "val": fitted.val.as_dict(),
        "here": cohort.here,
        "strength": trainer._run.strength and trainer._run.strength.value,
        "received": 0 if exchange is None else exchange.received,
    }


class Seen:
    def __init__(self):
        self.epochs = []

    def on_start(self, start): ...
    def on_step(self, record): ...
    def on_end(self): ...

    def on_epoch(self, record):
        self.epochs.append((record.terms, record.train_accuracy, record.strength))


def assert_equal(found, wanted, bar=1e-12):
    """Weights, terms and metrics, up to the order of sums."""
    for name, value in found["weights"].items():
        torch.testing.assert_close(value, wanted["weights"][name], rtol=0, atol=bar, msg=name)
    if found["epochs"]:
        torch.testing.assert_close(found["epochs"][-1][:2], wanted["epochs"][-1][:2], rtol=0, atol=bar)
    for own, other in zip(found["val"]["peers"], wanted["val"]["peers"], strict=True):
        assert own["accuracy"] == pytest.approx(other["accuracy"], abs=1e-12)
        assert own["nll"] == pytest.approx(other["nll"], abs=bar)
    assert found["val"]["images"] == wanted["val"]["images"]


@pytest.mark.parametrize("mixer", ["metamixer", "inside", "samples", "boxes"])
@pytest.mark.parametrize("loss", ["dml"])
def test_shares_of_a_batch_are_the_batch(mixer, loss, tmp_path):
    """Two processes with half of every batch: the same plan, gradients, weights and metrics as one process."""
    wanted = train(mixer, loss, mixing_groups=2)
    for found in processes.together(tmp_path, 2, train, mixer, loss):
        assert_equal(found, wanted)


def test_partners_in_the_whole_batch_are_others():
    """What mixing groups change is said and not nothing: partners."""
    first, second = train("inside", "dml", mixing_groups=2), train("inside", "dml")
    assert any(not torch.equal(value, second["weights"][name]) for name, value in first["weights"].items())


@pytest.mark.parametrize("reading", [Double, DoubleShared])
def test_shares_of_uneven_batches(reading, tmp_path):
    """Seven images for three processes: each counts by its images, whoever divides the batch."""
    wanted = train("metamixer", "dml", 7, mixing_groups=3)
    for found in processes.together(tmp_path, 3, train, "metamixer", "dml", 7, 2, None, 2, False, reading):
        assert_equal(found, wanted)


EACH = (PeerSettings(freeze=1, freeze_epochs=1, lr=0.02), PeerSettings(weight_decay=0.01))


def test_shares_of_peers_whose_first_stage_learns_from_the_second_epoch_on(tmp_path):
    wanted = train("metamixer", "dml", mixing_groups=2, epochs=3, each=EACH)
    plain = train("metamixer", "dml", mixing_groups=2, epochs=3)
    first, other = (made["weights"]["cohort.peers.0.0.0.weight"] for made in (wanted, plain))
    assert not torch.equal(first, other)
    for found in processes.together(tmp_path, 2, _freezing):
        assert_equal(found, wanted)


def _freezing():
    return train("metamixer", "dml", epochs=3, each=EACH)


def test_a_share_without_validation_images(tmp_path):
    """One batch of them for two processes."""
    wanted = train("none", "dml", held=1)
    assert wanted["val"]["images"] == 4
    for found in processes.together(tmp_path, 2, _held):
        assert_equal(found, wanted)


def _held():
    return train("none", "dml", held=1)


@pytest.mark.parametrize(("batch", "parts"), [(8, 2), (7, 3), (8, 8)])
@pytest.mark.parametrize("mixer", ["metamixer", "inside", "boxes"])
def test_micro_batches_are_the_batch(batch, parts, mixer):
    wanted = train(mixer, "dml", batch, mixing_groups=parts)
    assert_equal(train(mixer, "dml", batch, micro_batches=parts), wanted)


def test_micro_batches_of_shares_are_the_batch(tmp_path):
    wanted = train("inside", "dml", 8, mixing_groups=4)
    for found in processes.together(tmp_path, 2, _micro):
        assert_equal(found, wanted)


def _micro():
    return train("inside", "dml", 8, micro_batches=2)


def _weighted(**more):
    settings = {"ema": 0.9, "class_weights": "balanced", "label_smoothing": 0.1, "patience": 5}
    return train("metamixer", "dml", **settings, **more)


def test_shares_average_weights_and_weight_classes_as_one_process_does(tmp_path):
    wanted = _weighted(mixing_groups=2)
    assert any(name.startswith("average.") for name in wanted["weights"])
    for found in processes.together(tmp_path, 2, _weighted):
        assert_equal(found, wanted)


PEERS = [
    ("metamixer", "dml"), ("inside", "kdcl"), ("metamixer", "kdcl-general"), ("none", "okddip"), ("none", "pcl"),
    ("none", "mcl"), ("samples", "codistillation"), ("cutnmix", "cutnmix"), ("metamixer", "independent"),
]  # fmt: skip


@pytest.mark.parametrize(("mixer", "loss"), PEERS)
def test_each_process_trains_its_own_peer(mixer, loss, tmp_path):
    """Logits and features travel, and nothing else does; every peer gets the gradient that it has beside the others."""
    wanted = train(mixer, loss)
    found = processes.together(tmp_path, 2, _spread, mixer, loss)
    for rank, each in enumerate(found):
        assert each["here"] == ((rank,) if loss not in ("pcl", "codistillation", "cutnmix") else (rank, rank + 2))
        assert len(each["weights"]) < len(wanted["weights"])
        assert_equal(each, wanted)
    names = set(found[0]["weights"]) | set(found[1]["weights"])
    assert names == set(wanted["weights"])


def _spread(mixer, loss, peers=2, groups=2, folder=None, epochs=2, resume=False):
    return train(mixer, loss, peers=peers, peer_groups=groups, folder=folder, epochs=epochs, resume=resume)


@pytest.mark.parametrize("loss", ["dml", "okddip"])
def test_peers_and_shares_together(loss, tmp_path):
    """Four processes: two groups of two peers each, two shares of the images."""
    wanted = train("metamixer", loss, peers=4, mixing_groups=2)
    for rank, each in enumerate(processes.together(tmp_path, 4, _spread, "metamixer", loss, 4, 2)):
        assert each["here"] == ((0, 1), (2, 3))[rank // 2]
        assert_equal(each, wanted)


def test_a_process_holds_no_more_with_more_peers(tmp_path):
    """Weights and the optimizer's state of two peers in two processes, and of four in four."""
    two = processes.together(tmp_path / "two", 2, _spread, "none", "dml", 2, 2)
    four = processes.together(tmp_path / "four", 4, _spread, "none", "dml", 4, 4)
    assert four[0]["held"] == two[0]["held"] == four[2]["held"]
    assert four[1]["held"] == two[1]["held"] == four[3]["held"]
    assert two[0]["held"] + two[1]["held"] == train("none", "dml")["held"]


def test_what_travels_is_what_the_page_says(tmp_path):
    """Eight bytes a number here; each process receives the logits of the peers that it lacks, in every pass."""
    steps, classes, peers = 2 * 5, 3, 2
    training = steps * 8 * classes
    # Two dry runs: whether the networks fit, and how much memory a step takes.
    validation_images, dry_run = 2 * 13 * classes, 2 * 2 * classes
    for each in processes.together(tmp_path, 2, _spread, "metamixer", "dml"):
        assert each["received"] == (peers - 1) * 8 * (training + validation_images + dry_run)


def _counted():
    """Collectives among the hosts: bad numbers and signals together take one a step, and one more an epoch."""
    counts = []

    class Counting(ProcessGrid):
        def largest(self, *numbers):
            counts.append(numbers)
            return super().largest(*numbers)

    trainer.ProcessGrid = Counting
    train("metamixer", "dml", epochs=2)
    return len(counts)


def test_a_step_takes_one_collective_beside_gradients(tmp_path):
    steps, epochs = 2 * 5, 2
    assert processes.together(tmp_path, 2, _counted) == [steps + epochs] * 2


def test_a_run_resumes_with_other_processes(tmp_path):
    """A checkpoint has all peers wherever they were trained."""
    wanted = train("metamixer", "dml", epochs=2, folder=tmp_path / "whole")
    assert processes.together(tmp_path / "a", 2, _stopped, tmp_path / "run") == [7, 7]
    found = read(pointed(tmp_path / "run" / "checkpoints", "LATEST"))
    assert found.state["step"] == 7
    assert found.manifest["world_size"] == 2
    assert set(found.state["optimizer"]) == {"peer 0", "peer 1"}
    with pytest.warns(UserWarning, match="started by 2 processes and is resumed by 1: the same images"):
        alone = train("metamixer", "dml", epochs=2, folder=tmp_path / "run", resume=True)
    assert_equal(alone, wanted)


def test_a_run_resumes_with_its_processes_to_the_same_bits(tmp_path):
    wanted = processes.together(tmp_path / "a", 2, _spread, "metamixer", "dml", 2, 2, tmp_path / "whole")
    assert processes.together(tmp_path / "b", 2, _stopped, tmp_path / "run") == [7, 7]
    found = processes.together(tmp_path / "c", 2, _spread, "metamixer", "dml", 2, 2, tmp_path / "run", 2, True)
    for own, other in zip(found, wanted, strict=True):
        assert own["weights"].keys() == other["weights"].keys()
        assert all(torch.equal(value, other["weights"][name]) for name, value in own["weights"].items())


def _stopped(folder):
    """Stops at step 7 because one of the processes gets a signal, and not the one that speaks."""
    signaled = Signaled(7)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _train_signaled(folder, signaled)
    except Interrupted as interrupted:
        return interrupted.step
    raise AssertionError("nothing was interrupted")


def _train_signaled(folder, signaled):
    original = DoubleShared.epoch

    def epoch(self, number, start=0):
        for batch in original(self, number, start):
            signaled()
            yield batch

    Double.epoch = epoch
    train("metamixer", "dml", peer_groups=2, folder=folder)


class Signaled:
    """Sends this process a signal when the data of a step are asked for, in the second process."""

    def __init__(self, step):
        self.left = step + 1  # one batch is for the dry run

    def __call__(self):
        self.left -= 1
        if self.left == 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)


def _lost(how, folder):
    """The second process dies, fails or hangs at its fourth batch."""
    left = [5]
    original = Double.epoch

    def epoch(self, number, start=0):
        for batch in original(self, number, start):
            left[0] -= 1
            if left[0] == 0 and os.environ["RANK"] == "1":
                if how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "hangs":
                    time.sleep(60)
                raise MemoryError("no more")
            yield batch

    Double.epoch = epoch
    return train("metamixer", "dml", folder=folder, timeout=0.1 if how == "hangs" else 10.0)


@pytest.mark.parametrize("how", ["killed", "fails", "hangs"])
def test_none_waits_for_a_process_that_is_gone(how, tmp_path):
    began = time.monotonic()
    started = processes.start(tmp_path / "p", 2, _lost, how, tmp_path / "run")
    started[0].join(40)
    seconds = time.monotonic() - began
    for process in started:
        process.kill()
    found = processes.results(tmp_path / "p", started)
    assert found[0] is not None, "the first process still waits"
    fine, said = found[0]
    assert not fine
    assert said.startswith("ProcessLost: process 0 of 2 lost another one, which ended or did not answer"), said
    assert seconds < 40


def test_what_cannot_be_divided_is_said():
    def trainer(cohort=None, loss=None, **settings):
        return Trainer(cohort or toys.cohort(), NoMix(), loss or DML(), epochs=1, accelerator="cpu", **settings)

    with pytest.raises(TrainingError, match="peer_groups=2: 1 process cannot be divided among so many groups"):
        trainer(peer_groups=2)
    with pytest.raises(TrainingError, match="mixing_groups=3: accepted are multiples of 2"):
        trainer(mixing_groups=3, micro_batches=2)
    with pytest.raises(ValueError, match="micro_batches=-1: input should be greater than or equal to 1"):
        trainer(micro_batches=-1)
    with pytest.raises(TrainingError, match="batch norm over all processes needs CUDA devices, this is cpu"):
        trainer(Cohort([nn.SyncBatchNorm.convert_sync_batchnorm(toys.network(0))], stages=["0", "1"]), Independent())
    with pytest.raises(ValueError, match="3 peers cannot be divided evenly among 2 groups"):
        toys.cohort(3).owners(2)


def _refused(loss):
    try:
        Trainer(toys.cohort(), NoMix(), loss, epochs=1, accelerator="cpu", peer_groups=2)
    except TrainingError as error:
        return str(error)
    return ""


def test_methods_that_look_inside_of_the_others_stay_in_one_process(tmp_path):
    from metamixer.losses import FFL

    said = processes.together(tmp_path, 2, _refused, FFL())
    assert said[0].startswith("peer_groups=2: FFL looks at the stages of all peers, and only logits and pooled")


def command(tmp_path, *words, launcher=()):
    begin = [sys.executable, "-m", *launcher]
    run = [
        *begin, "metamixer", "train", "--peers", "resnet8,resnet8", "--device", "cpu", "--quiet", "--out",
        str(tmp_path / "run"), "data.train_limit=20", "train.epochs=2", "optim.lr=0.02", *words,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        pytest.param((), ["train.devices=2"], marks=pytest.mark.slow),
        pytest.param(TORCHRUN, [], marks=pytest.mark.slow),
        (TORCHRUN, ["train.peer_groups=2"]),
    ],
    ids=["fabric", "torchrun", "peers"],
)
def test_two_processes_train_one_run(tmp_path, launcher, words):
    done = command(tmp_path, *words, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ensemble") == 1  # the second process is silent
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    again = evaluate_run(tmp_path / "run").as_dict()
    assert report["last_epoch"]["images"] == again["images"]
    for own, other in zip(report["last_epoch"]["peers"], again["peers"], strict=True):
        assert own["accuracy"] == other["accuracy"]
        assert own["nll"] == pytest.approx(other["nll"], rel=1e-5)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    manifests = list((tmp_path / "run" / "checkpoints").glob("*/manifest.json"))
    assert {json.loads(path.read_text())["world_size"] for path in manifests} == {2}
