"""A training in a precision that the processor does not support warns of its cost."""

import platform
import subprocess
import sys

import pytest
import torch

from metamixer.training import half_precision
from metamixer.training.half_precision import slowdown, warn_if_slow

TRAIN = """
import warnings
from pathlib import Path
from metamixer.config.recipe import Recipe
from metamixer.runs.before_data import check_before_data
from metamixer.runs.run import evaluate_run, train
from metamixer.training.half_precision import slowdown, warn_if_slow

def said(work):
    warn_if_slow.cache_clear()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        work()
    return [str(one.message) for one in found if "train.precision" in str(one.message)]

print(slowdown("bf16", "cpu"))
recipe = Recipe.of({"data": {"name": "fashion-mini", "train_limit": 4}, "peers": ["resnet8", "resnet8"],
    "train": {"epochs": 1, "batch_size": 20, "precision": "bf16"}}, ["loss=independent", "mixer=none"])
run = Path("run")
for work in (lambda: check_before_data(recipe), lambda: train(recipe, run), lambda: evaluate_run(run, "val")):
    (message,) = said(work)
    print(message)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the variable is of x86")
def test_training_and_evaluating_without_the_arithmetic_warn_of_the_ratio(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # as on a processor without bf16
    done = subprocess.run([sys.executable, "-c", TRAIN], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ratio, *messages = done.stdout.splitlines()
    assert float(ratio) > 3
    assert len(messages) == 3
    for message in messages:
        assert message.startswith("train.precision=bf16 takes ")
        assert message.endswith("there is no native support; train.precision=32 is faster here")
    assert all(f"takes {float(ratio):.1f} times as long as 32" in message for message in messages)


def test_float32_is_not_measured(monkeypatch, recwarn):
    monkeypatch.setattr(half_precision.F, "conv2d", lambda *_, **__: pytest.fail("measured"))
    warn_if_slow("32", "cpu")
    assert slowdown("32", "cpu") == 1
    assert not recwarn


def test_a_gpu_with_native_support_is_not_measured(monkeypatch):
    """On an H200 shared by twelve training runs, a measured ratio of 1.6 led to a false warning."""
    asked = []
    monkeypatch.setattr(half_precision.F, "conv2d", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *, including_emulation: not asked.append(including_emulation)
    )
    slowdown.cache_clear()
    assert slowdown("bf16", "cuda") == slowdown("16", "cuda") == 1
    assert asked == [False]
    slowdown.cache_clear()


def test_measuring_draws_nothing():
    state = torch.get_rng_state()
    slowdown.cache_clear()
    assert slowdown("bf16", "cpu") > 0
    assert torch.equal(torch.get_rng_state(), state)
