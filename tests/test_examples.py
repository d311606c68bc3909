"""The examples run as they stand, and learn."""

import importlib.util
import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
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
