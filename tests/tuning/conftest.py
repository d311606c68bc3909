"""A small search on the bundled images."""

import pytest

from metamixer.tuning.tune_file import Search

RECIPE = {
    "data": {"train_limit": 20, "image_size": 12},
    "peers": ["resnet8", "resnet8"],
    "mixer": "none",
    "train": {"epochs": 3, "batch_size": 50, "accelerator": "cpu"},
}
CONTENT = {
    "recipe": RECIPE,
    "space": {"optim.lr": {"low": 0.003, "high": 0.3, "log": True}, "loss.temperature": [1.0, 4.0]},
    "trials": 3,
    "startup": 2,
    "warmup": 1,
}


@pytest.fixture
def search():
    return Search.of(CONTENT)
