"""Tiny runs to export from."""

from importlib import import_module

import pytest
from typer.testing import CliRunner

from metamixer.cli.app import app
from metamixer.config.recipe import Recipe
from metamixer.runs.run import train

TINY = ["data.train_limit=30", "data.image_size=12", "train.batch_size=50", "train.epochs=2", "train.accelerator=cpu",
        "mixer=none", "optim.lr=0.05"]  # fmt: skip


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Two architectures, equals."""
    folder = tmp_path_factory.mktemp("export") / "run"
    train(Recipe.of({"peers": ["resnet8", "resnet14"]}, TINY), folder)
    return folder


@pytest.fixture(scope="session")
def led(tmp_path_factory):
    """Three peers, the last of which leads."""
    folder = tmp_path_factory.mktemp("export") / "led"
    train(
        Recipe.of({"peers": ["resnet8"] * 3, "loss": "okddip"}, [*TINY, "data.train_limit=10", "train.epochs=1"]),
        folder,
    )
    return folder


@pytest.fixture(scope="session")
def averaged(tmp_path_factory):
    """Two branches on one trunk, and their shadows."""
    folder = tmp_path_factory.mktemp("export") / "averaged"
    recipe = Recipe.of(
        {"peers": [{"name": "resnet8", "branches": 2}], "loss": "pcl"},
        [*TINY, "data.train_limit=10", "train.epochs=1"],
    )
    train(recipe, folder)
    return folder


@pytest.fixture(scope="session")
def by_command(run):
    """The ensemble of two architectures as ONNX, float and int8, by the command, and what that printed."""
    done = []
    with pytest.MonkeyPatch.context() as patch:
        module = import_module("metamixer.export.export")  # the package has a function of this name
        usual = module.export
        patch.setattr(module, "export", lambda *args, **kw: done.append(usual(*args, **kw)) or done[0])
        words = ["export", str(run), "--peer", "ensemble", "--quantize", "int8", "--license", "cc-by-4.0"]
        result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return done[0], result.stdout
