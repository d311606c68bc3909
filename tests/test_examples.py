"""The examples run as they stand, and learn."""

import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


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
