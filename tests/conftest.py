"""What every test shares."""

import os

import pytest
import torch
from hypothesis import settings

from metamixer.core import trusted_imports

torch.set_num_threads(1)  # xdist runs a process per core

# The same examples in every run, so that a red test is red again. HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def _own_imports():
    """What a test allows to be imported is allowed to it alone."""
    with trusted_imports.scope():
        yield
