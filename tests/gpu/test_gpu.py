"""The method on a GPU: the same values as on the CPU, training in every precision, resuming, and the commands.

All tests are skipped on a machine without a GPU; `pytest tests/gpu` runs them.
"""

import copy
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.core.plan import MixPlan
from metamixer.core.types import Batch, total
from metamixer.training.train_step import train_step
from metamixer.training.trainer import Trainer
from tests.command import metamixer
from tests.losses.test_contract import LABELS, images_of, seeded, tiny, variants

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MINI = ("--data", "fashion-mini", "--peers", "resnet8,resnet8", "train.epochs=2", "--quiet")


@pytest.fixture
def exact():
    """Convolutions without TF32, which rounds differently."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("loss_name", LOSSES)
def test_a_step_has_the_gradients_of_the_cpu(loss_name, exact):
    """Each loss with MetaMixer, both halves, from the same weights, batch and draws."""
    here = tiny(LOSSES[loss_name])
    batch = Batch(images_of((7, 7)), LABELS, companions=images_of((7, 7)).flip(-1))
    torch.manual_seed(0)
    loss = LOSSES[loss_name]()
    loss.setup(here(batch.images, MixPlan()))
    there, loss_there = copy.deepcopy(here).cuda(), copy.deepcopy(loss).cuda()
    mixer = variants("metamixer")["always"]
    found = []
    for cohort, method, device in ((here, loss, "cpu"), (there, loss_there, "cuda")):
        moved = Batch(batch.images.to(device), batch.labels.to(device), companions=batch.companions.to(device))
        terms = train_step(cohort, mixer, method, moved, seeded(2)).terms
        total(terms).backward()
        gradients = [p.grad.cpu() for p in cohort.parameters() if p.grad is not None]
        found.append(({name: term.detach().cpu() for name, term in terms.items()}, gradients))
    assert found[0][1]
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the compiler of torch
@pytest.mark.parametrize("mixer_name", ["none", "metamixer"])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_cohort_has_the_outputs_of_an_eager_one(mixer_name, mode, exact):
    """Also a second and a third time: CUDA graphs are recorded in the second call and replayed in the third."""
    eager = tiny().cuda()
    compiled = Cohort(list(copy.deepcopy(eager).peers), stages=["1", "3"], compile=mode)
    x, labels = images_of((7, 7), device="cuda"), LABELS.cuda()
    mixer = variants(mixer_name)["always"]
    for seed in range(3):
        plan = mixer(x, labels, companions=x.flip(-1), generator=seeded(seed))
        torch.testing.assert_close(compiled(x, plan).logits, eager(x, plan).logits, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        ["train.precision=32"],
        ["train.precision=bf16"],
        ["train.precision=16"],
        ["train.precision=bf16", "train.compile=reduce-overhead"],
        ["mixer.strength=auto", "train.strength_epochs=1"],
        ["train.micro_batches=2", "train.ema=0.9"],
        ["train.batch_size=auto", "optim.lr=auto"],
        ["data.workers=2", "data.augment=trivial"],
    ],
    ids=" ".join,
)
def test_training_learns(settings, tmp_path):
    metamixer("train", *MINI, *settings, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run/report.json").read_text())
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert environment["gpu"] == torch.cuda.get_device_name()
    rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert min(rows[1]["train_accuracy"]) > 0.15
    assert report["deployed"]


def test_a_stopped_training_ends_as_one_that_was_not(tmp_path):
    """Kernels of cuDNN may add in another order, so the ends are equal up to the effect of that on a few steps."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    metamixer("train", *MINI, "--out", whole)
    words = [sys.executable, "-m", "metamixer", "train", *MINI, "--out", str(parts)]
    process = subprocess.Popen(words)
    while process.poll() is None and not (parts / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (0, 143)
    metamixer("train", "--resume", parts, "--quiet")
    ends = [json.loads((path / "metrics.jsonl").read_text().splitlines()[-1]) for path in (whole, parts)]
    assert ends[1]["step"] == ends[0]["step"]
    assert ends[1]["train_accuracy"] == pytest.approx(ends[0]["train_accuracy"], abs=0.1)


def test_commands_use_the_network(tmp_path):
    run = tmp_path / "run"
    metamixer("train", *MINI, "--out", run)
    metamixer("evaluate", run, "--device", "cuda")
    metamixer("evaluate", run, "--device", "cpu")
    metamixer("export", run, "--to", "torch-export", "--device", "cuda", "--out", tmp_path / "network.pt2")
    metamixer("report", run, "--out", tmp_path / "report.html")
    program = torch.export.load(tmp_path / "network.pt2").module()
    for count in (1, 5):
        images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8, device="cuda")
        assert program(images).device.type == "cuda"
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize("settings", [[], ["train.sync_batchnorm=true"]], ids=str)
def test_torchrun_with_nccl(settings, tmp_path):
    """One process started by torchrun: NCCL, DistributedDataParallel and all collectives, with one member."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--standalone", "-m", "metamixer"]
    words = ["train", *MINI, *settings, "--out", str(tmp_path / "run")]
    ended = subprocess.run([*start, *words], capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run/report.json").is_file()


def test_a_network_of_ones_own(tmp_path):
    """The Python interface with a DataLoader: batches come from the CPU."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 8, 8), torch.arange(64) % 4
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), 16, shuffle=True)
    networks = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)) for _ in range(2)]
    trainer = Trainer(Cohort(networks), MIXERS["metamixer"](), LOSSES["dml"](), epochs=3, folder=tmp_path)
    fitted = trainer.fit(loader, loader)
    assert fitted.step == 12
    assert trainer.device.type == "cuda"
