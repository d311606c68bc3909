"""Checkpoints are whole or not there, and damage is noticed."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from metamixer.training import checkpoint
from metamixer.training.checkpoint import CheckpointError

STATE = {"step": 3, "numbers": [1.5, 2], "tensor": torch.arange(3), "none": None, "text": "x"}


def module(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)


def written(folder, step=3, seed=0, whole=True):
    path = checkpoint.write(folder, step, checkpoint.weights_of(module(seed)), STATE, {"recipe": "abc"}, whole=whole)
    checkpoint.point(folder, "LATEST", path)
    return path


def test_round_trip(tmp_path):
    written(tmp_path)
    found = checkpoint.read_latest(tmp_path)
    assert found.manifest["recipe"] == "abc"
    assert found.manifest["step"] == 3
    assert torch.equal(found.state.pop("tensor"), STATE["tensor"])
    assert found.state == {key: value for key, value in STATE.items() if key != "tensor"}
    other = module(seed=1)
    found.load_weights(other)
    for name, value in module().state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_nothing_there(tmp_path):
    assert checkpoint.read_latest(tmp_path) is None
    assert checkpoint.pointed(tmp_path, "BEST") is None


def test_weights_of_other_networks_are_refused(tmp_path):
    found = checkpoint.read(written(tmp_path))
    with pytest.raises(CheckpointError, match="does not fit these networks"):
        found.load_weights(nn.Linear(2, 2))


def test_shared_weights_are_saved_once_and_come_back(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.other = nn.Linear(3, 3)
            self.other.weight = self.one.weight

    first, second = Tied(), Tied()
    path = checkpoint.write(tmp_path, 1, checkpoint.weights_of(first), {}, {}, whole=True)
    checkpoint.read(path).load_weights(second)
    assert torch.equal(first.other.weight, second.other.weight)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["weights.safetensors", "state.pt"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_one_flipped_bit_anywhere_is_noticed(tmp_path, name, place, bit):
    path = written(tmp_path)
    content = bytearray((path / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        checkpoint.read(path)
    content[int(place * len(content))] ^= 1 << bit
    (path / name).write_bytes(content)


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("keep", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_noticed(tmp_path, name, keep):
    path = written(tmp_path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(keep * len(content))])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.read(path)


def test_a_missing_file_and_another_format_are_named(tmp_path):
    path = written(tmp_path)
    manifest = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(manifest.replace('"schema": 2', '"schema": 99'))
    with pytest.raises(CheckpointError, match="has format 99"):
        checkpoint.read(path)
    (path / "manifest.json").write_text(manifest)
    (path / "state.pt").unlink()
    with pytest.raises(CheckpointError, match=r"state\.pt is missing"):
        checkpoint.read(path)


def test_a_damaged_latest_is_passed_over_with_its_name(tmp_path):
    good = written(tmp_path, step=3)
    bad = written(tmp_path, step=9)
    (bad / "state.pt").write_bytes(b"<html>")
    with pytest.warns(UserWarning, match="step-00000009-whole"):
        found = checkpoint.read_latest(tmp_path)
    assert found.path == good
    (good / "state.pt").unlink()
    with (
        pytest.warns(UserWarning, match="passed over"),
        pytest.raises(CheckpointError, match="none of the 2 checkpoints"),
    ):
        checkpoint.read_latest(tmp_path)


def test_prune_keeps_the_newest_and_what_is_pointed_to(tmp_path):
    checkpoint.point(tmp_path, "BEST", written(tmp_path, step=1))
    for step in (2, 3, 4):
        written(tmp_path, step=step)
    (tmp_path / "step-00000009-whole.tmp.123").mkdir()
    (tmp_path / "LATEST.tmp.123").write_text("x")
    checkpoint.prune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "LATEST", "BEST", "step-00000001-whole", "step-00000003-whole", "step-00000004-whole",
    }  # fmt: skip


def test_the_same_checkpoint_again_is_left_alone_unless_damaged(tmp_path):
    path = written(tmp_path)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert written(tmp_path) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    (path / "state.pt").write_bytes(b"")
    written(tmp_path)
    checkpoint.read(path)


_CRASH = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training.test_checkpoint import written
from metamixer.training import checkpoint
calls, left = 0, int(sys.argv[2])
def deadly(function):
    def call(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*args, **kwargs)
    return call
pathlib = sys.modules["pathlib"]
pathlib.Path.rename, pathlib.Path.replace = deadly(pathlib.Path.rename), deadly(pathlib.Path.replace)
checkpoint.os.fsync, torch.save = deadly(os.fsync), deadly(torch.save)
checkpoint.safetensors.torch.save_file = deadly(checkpoint.safetensors.torch.save_file)
folder = Path(sys.argv[1])
for step in (2, 3):
    path = written(folder, step=step, seed=step)
    checkpoint.point(folder, "BEST", path)
    checkpoint.prune(folder)
print("all", left)
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", range(30))
def test_killed_at_every_point_of_writing_a_whole_checkpoint_remains(tmp_path, point):
    written(tmp_path, step=1, seed=1)
    done = subprocess.run([sys.executable, "-c", _CRASH, str(tmp_path), str(point)], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert (done.returncode == 0) == (point >= 28)
    found = checkpoint.read_latest(tmp_path)
    assert found.manifest["step"] >= 1
    seed = found.manifest["step"]
    other = module(seed=99)
    found.load_weights(other)
    assert torch.equal(other[0].weight, module(seed=seed)[0].weight)


def test_a_full_disk_leaves_the_old_checkpoint_and_says_so(tmp_path):
    """A file-size limit stands in for the full disk; it holds for a child process alone."""
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "import torch; from torch import nn; from metamixer.training import checkpoint\n"
        "def write(size, state):\n"
        " weights = checkpoint.weights_of(nn.Linear(size, size))\n"
        " checkpoint.write(Path(sys.argv[1]), 9, weights, state, {}, whole=True)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))\n"
        "try: write(2000, {})\n"
        "except OSError as error: print(error)\n"
        "try: write(2, {'x': torch.zeros(10**6)})\n"
        "except OSError as error: print(error)\n"
    )
    written(tmp_path)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) >= 2
    assert "cannot write the checkpoint" in lines[0]
    assert "step-00000003-whole" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"LATEST", "step-00000003-whole"}
    assert os.path.isfile(tmp_path / "step-00000003-whole" / "state.pt")
