"""What a command does not need it does not import: modules are counted, because seconds depend on the machine."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

BEFORE = Path(__file__).parents[1] / "runs" / "before.zip"
NEVER = ("lightning_fabric", "torch._dynamo", "torch._inductor", "scipy.signal", "tensorboardX", "timm", "torchvision")
"""None of the commands below needs these for networks of the package on images of its own."""

RUN = """
import json, runpy, sys
found = sys.argv[1]
sys.argv = ["metamixer", *sys.argv[2:]]
try:
    runpy.run_module("metamixer", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
finally:
    open(found, "w").write(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("imports")
    with zipfile.ZipFile(BEFORE) as packed:
        packed.extractall(place / "run")
    Image.new("L", (28, 28), 90).save(place / "image.png")
    found = modules("train", "--resume", "run", "--quiet", place=place)
    assert not found & {*NEVER, "matplotlib", "jinja2", "torch.onnx"} - {"tensorboardX"}, "a training needs these"
    return place


def modules(*words, place):
    """What was imported when a command has ended, and how much of it is neither torch's nor the interpreter's."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(place / "found.json"), *words], cwd=place, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads((place / "found.json").read_text()))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["list", "losses"], ["torch", "numpy", "PIL"]),
        (["predict", "run", "image.png"], ["scipy", "matplotlib", "jinja2", "torch.onnx"]),
        (["evaluate", "run"], ["matplotlib", "jinja2", "torch.onnx"]),
        (["report", "run", "--no-pictures"], ["scipy", "matplotlib", "torch.onnx"]),
        (["export", "run", "--to", "safetensors"], ["scipy", "matplotlib", "onnx", "onnxruntime", "torch.onnx"]),
    ],
    ids=lambda words: words[0],
)
def test_a_command_imports_what_it_needs(place, words, without):
    found = modules(*words, place=place)
    assert not found & {*NEVER, *without}


@pytest.mark.timeout(300)
def test_a_loop_of_ones_own_needs_little_beside_torch(tmp_path):
    """The package, a cohort and a loss: at most 200 modules more than torch alone has."""
    begin = "import json, sys, torch; before = len(sys.modules);"
    end = "print(len(sys.modules) - before)"
    use = "import metamixer; metamixer.Cohort, metamixer.DML(), metamixer.MetaMixer();"
    done = subprocess.run([sys.executable, "-c", f"{begin} {use} {end}"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200
