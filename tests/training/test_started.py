"""Processes that somebody else started: what fits is found out, what does not is refused with what does."""

import os
import subprocess
import sys

import pytest

from metamixer.training.settings import TrainSettings
from metamixer.training.started import CHILD, Started, is_first_process, layout, started

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def environ(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("SLURM", "TORCHELASTIC", "OMPI")) or name in (*TORCHRUN, CHILD):
            monkeypatch.delenv(name)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, Started()),
        ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, Started()),
        (JOB, Started()),
        (JOB | {"SLURM_NTASKS_PER_NODE": "2"}, Started()),
        (STEP, Started("srun", 0, 2, 2)),
        (STEP | {"SLURM_PROCID": "1"}, Started("srun", 1, 2, 2)),
        (JOB | {"SLURM_PROCID": "1"}, Started("srun", 1, 2, 2)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}, Started("srun", 0, 4, 2)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Started()),
        (TORCHRUN, Started("torchrun", 3, 4, 2)),
        (STEP | TORCHRUN, Started("torchrun", 3, 4, 2)),
        ({CHILD: "1", "LOCAL_RANK": "1"}, Started("training", 1)),
    ],
)
def test_who_started_this_process(environ, variables, wanted):
    environ(variables)
    assert started() == wanted
    assert is_first_process() == (wanted.rank == 0)


@pytest.mark.parametrize(
    ("variables", "settings", "wanted"),
    [
        (JOB, {}, (1, 1)),
        (JOB, {"devices": 2}, (2, 1)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, {"devices": 2}, (2, 1)),
        (STEP, {"devices": 2}, (2, 1)),
        (STEP | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}, {"devices": 2, "num_nodes": 2}, (2, 2)),
        (TORCHRUN, {"devices": 7}, (2, 2)),
        (
            STEP,
            {},
            r"devices=1 and num_nodes=1: srun started 2 processes; accepted are srun --nodes=1",
        ),
        (STEP, {"devices": 4}, r"srun started 2 processes; .* --ntasks-per-node=4, or devices=2 with num_nodes=1"),
        ({}, {"num_nodes": 2}, r"num_nodes=2: no launcher .* torchrun --nnodes=2 --nproc-per-node=1 on each machine"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, {}, "devices=1: mpirun started 2 processes .* accepted are torchrun, srun"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(environ, variables, settings, wanted):
    environ(variables)
    if isinstance(wanted, tuple):
        assert layout(TrainSettings(**settings)) == wanted
    else:
        with pytest.raises(ValueError, match=wanted):
            layout(TrainSettings(**settings))


WORDS = [
    "train", "--peers", "resnet8,resnet8", "--device", "cpu", "--quiet", "data.train_limit=10", "train.epochs=1",
    "peers.0.widths=[2,2,4,4]", "peers.1.widths=[2,2,4,4]", "optim.lr=0.02",
]  # fmt: skip


def command(tmp_path, variables, *words):
    environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
    return subprocess.run(
        [sys.executable, "-m", "metamixer", *WORDS, "--out", str(tmp_path / "run"), *words],
        capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"} | variables, cwd=tmp_path,
    )  # fmt: skip


def test_two_tasks_of_srun_do_not_train_in_one_folder(tmp_path):
    done = command(tmp_path, STEP)
    assert done.returncode == 2
    assert "train.devices=1 and num_nodes=1: srun started 2 processes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_batch_script_without_srun_and_stray_variables_train(tmp_path):
    stray = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"}
    done = command(tmp_path, JOB | stray, "train.devices=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.json").exists()
