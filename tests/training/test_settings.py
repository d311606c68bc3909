import inspect
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from metamixer.training.settings import HALF, TrainSettings


@pytest.mark.parametrize(
    ("setting", "values", "refused"),
    [
        ("epochs", [1, 300], [0, -1, 1.5, "many", None]),
        ("seed", [0, 2**31], [-1, 0.5]),
        ("precision", ["32", "bf16", "16"], ["64", 8, "fp16"]),
        ("accelerator", ["auto", "cpu", "cuda", "mps"], ["gpu", None]),
        ("devices", [1, 8], [0]),
        ("peer_groups", [1, 2], [0]),
        ("timeout", [0.1, 60.0], [0.0, -1.0, float("nan")]),
        ("micro_batches", [1, 4], [0]),
        ("mixing_groups", [None, 2], [0]),
        ("on_nonfinite", ["stop", "skip", "backoff"], ["ignore"]),
        ("update", ["joint", "alternating"], ["both"]),
        ("select_small_loss", [0.0, 0.5], [1.0, -0.1]),
        ("select_small_loss_ramp", [0.0, 1.0], [1.1]),
        ("checkpoint_every", [1], [0]),
        ("validate_every", [1], [0]),
    ],
)
def test_ranges(setting, values, refused):
    for value in values:
        assert getattr(TrainSettings(**{setting: value}), setting) == value
    for value in refused:
        with pytest.raises(ValueError, match=setting):
            TrainSettings(**{setting: value})


def test_settings_stay_as_they_are():
    with pytest.raises(FrozenInstanceError):
        TrainSettings().epochs = 3


def test_every_setting_is_documented():
    described = inspect.getdoc(TrainSettings)
    assert [field.name for field in fields(TrainSettings) if f"\n    {field.name}:" not in described] == []


def test_dtypes_of_half_precision():
    assert {"bf16": torch.bfloat16, "16": torch.float16} == HALF
    assert TrainSettings().precision not in HALF
