"""Registries: read without torch, and each name is what it says."""

import importlib
import inspect
import subprocess
import sys

import pytest

import metamixer
from metamixer.core.registry import lazy_names
from metamixer.losses import LOSSES
from metamixer.mixers import MIXERS
from metamixer.models import MODELS

TABLES = {"losses": LOSSES, "mixers": MIXERS, "models": MODELS}
ENTRIES = [(table, name) for table in TABLES for name in TABLES[table]]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.parametrize(("table", "name"), ENTRIES, ids=" ".join)
def test_an_entry_is_what_its_part_says(table, name):
    entry, part = TABLES[table].entries[name], TABLES[table][name]
    assert callable(part)
    assert 10 < len(entry.summary) < 110
    assert entry.target.startswith(f"metamixer.{table}.")
    if table == "models":
        return
    assert part is getattr(metamixer, part.__name__)
    assert part is getattr(importlib.import_module(f"metamixer.{table}"), part.__name__)
    assert entry.target == f"{part.__module__}:{part.__name__}"
    assert inspect.getdoc(part)
    if table == "losses":
        assert entry.paper
        assert entry.deploys
        assert entry.needs == tuple(part.needs)


def test_names_are_read_without_importing_them():
    out = run(
        "import sys; from metamixer.losses import LOSSES; from metamixer.mixers import MIXERS\n"
        "from metamixer.models import MODELS\n"
        "print(*LOSSES, *MIXERS, *MODELS, 'dml' in LOSSES, len(MIXERS), LOSSES.entries['one'].needs)\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    )
    assert "resnet20" in out


def test_what_is_not_there_is_an_attribute_error():
    get, names = lazy_names("metamixer.losses", ["metamixer.losses.dml:DML"])
    assert names == ["DML"]
    with pytest.raises(AttributeError, match=r"module 'metamixer.losses' has no attribute 'DMLL'"):
        get("DMLL")
    with pytest.raises(AttributeError, match="no attribute 'resnet21'"):
        _ = importlib.import_module("metamixer.models").resnet21
    with pytest.raises(KeyError):
        LOSSES["dmll"]
