"""Importing what needs torchvision, in an order that users have."""

import subprocess
import sys

import pytest

from metamixer.core import torchvision_compat


@pytest.mark.parametrize(
    "code",
    [
        "import metamixer; import timm; timm.create_model('resnet18')",
        pytest.param(
            "from metamixer import Cohort; from torchvision import datasets, models, transforms; import torchmetrics",
            marks=pytest.mark.slow,
        ),
        "import importlib, metamixer, torchvision; assert torchvision.__spec__.loader is torchvision.__loader__\n"
        "importlib.reload(torchvision)",
        "import sys\n"
        "try:\n"
        "    import timm\n"
        "except RuntimeError:\n"  # beside a CPU-only torch
        "    import metamixer, timm\n"
        "import torchvision.transforms.v2",
    ],
    ids=["timm", "torchvision", "reloaded", "too late and again"],
)
def test_imports_after_metamixer(code):
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_installed_once():
    before = list(sys.meta_path)
    torchvision_compat.make_importable()
    assert sys.meta_path == before


def test_another_error_is_handed_on(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('of its own')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import metamixer, torchvision"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError: of its own" in ran.stderr


def test_an_environment_without_torchvision():
    finder = next(each for each in sys.meta_path if isinstance(each, torchvision_compat._Finder))
    assert finder.find_spec("torchvision", []) is None
    assert finder.find_spec("torchvision.ops", None) is None
