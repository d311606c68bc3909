"""The examples run as they stand, and learn."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def test_own_loop(capsys):
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLES / "own_loop.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    losses = module.main(steps=12)
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert "ensemble" in capsys.readouterr().out


def test_the_loop_of_the_readme_runs_as_it_is_printed():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    draw = torch.Generator().manual_seed(0)
    batch = torch.randn(4, 3, 32, 32, generator=draw), torch.tensor([0, 1, 0, 1])
    names = {"loader": [batch, batch]}
    exec(code, names)  # noqa: S102
    assert names["terms"]["task"].shape == (2,)
    assert all(term.isfinite().all() for term in names["terms"].values())


def test_a_method_from_outside_of_the_package(tmp_path):
    """As docs/extending.md says: one file under 80 lines, named by an import path, in the folder one is in."""
    assert len((EXAMPLES / "confident_peers.py").read_text().splitlines()) < 80
    words = ["--data", "fashion-mini", "--peers", "resnet8,resnet8", "--loss", "confident_peers:ConfidentPeers"]
    changes = ["loss.threshold=0.6", "data.train_limit=20", "train.epochs=1", "--mixer", "none"]
    call = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        "from metamixer.cli.app import main; main()",
        "train",
        *words,
        *changes,
    ]
    done = subprocess.run(
        [*call, "--out", str(tmp_path / "run"), "--quiet"],
        cwd=EXAMPLES,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # as the installed script: without the folder one is in
    )
    assert done.returncode == 0, done.stderr
    assert "threshold: 0.6" in (tmp_path / "run" / "recipe.yaml").read_text()
