"""What is read from the source is what the import would give."""

import inspect
import json
from dataclasses import is_dataclass
from functools import partial

import pytest

from metamixer.cli import catalogue
from metamixer.config.registry import LOSSES, MIXERS, all_settings
from metamixer.data import DATASETS
from metamixer.models import MODELS


def as_in_a_file(settings):
    return json.loads(json.dumps(settings))


def class_constants(cls):
    """What a class assigns beside methods and fields, of the types that a literal can have."""
    own = {name: value for name, value in vars(cls).items() if not name.startswith("__")}
    fields = getattr(cls, "__dataclass_fields__", {}) if is_dataclass(cls) else {}
    hidden = {name for name, each in fields.items() if "ClassVar" not in str(each.type)}
    plain = bool | int | float | str | tuple | list | dict | set | None
    return {name: value for name, value in own.items() if name not in hidden and isinstance(value, plain)}


@pytest.mark.parametrize(
    ("read", "table"),
    [(catalogue.mixers, MIXERS), (catalogue.losses, LOSSES), (catalogue.networks, MODELS), (catalogue.data, DATASETS)],
    ids=["mixers", "losses", "networks", "data"],
)
def test_the_names_are_those_of_the_table_in_its_order(read, table):
    assert [entry.name for entry in read()] == list(table)


@pytest.mark.parametrize(
    ("entry", "table"),
    [*((entry, MIXERS) for entry in catalogue.mixers()), *((entry, LOSSES) for entry in catalogue.losses())],
    ids=lambda each: getattr(each, "name", ""),
)
def test_mixers_and_losses_are_as_imported(entry, table):
    cls = table[entry.name]
    assert entry.doc == inspect.getdoc(cls)
    assert as_in_a_file(entry.settings) == all_settings({"name": entry.name}, table)
    assert entry.constants == class_constants(cls)
    assert entry.line
    assert "`" not in entry.line


@pytest.mark.parametrize("entry", catalogue.networks(), ids=lambda entry: entry.name)
def test_networks_are_as_imported(entry):
    make = MODELS[entry.name]
    cls = make.func if isinstance(make, partial) else make
    assert entry.doc == inspect.getdoc(cls)
    assert entry.fixed == (make.keywords if isinstance(make, partial) else {})
    free = {name: each.default for name, each in inspect.signature(make).parameters.items() if name not in entry.fixed}
    assert entry.settings == {name: ... if value is inspect.Parameter.empty else value for name, value in free.items()}


def test_data_sets_have_their_summaries():
    assert {entry.name: entry.line for entry in catalogue.data()} == DATASETS


SOURCE = '''
from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from metamixer.other import Elsewhere as Here

USUAL = 0.25

@dataclass(frozen=True)
class Settings:
    """One line.

    More.
    """
    must: int
    usual: float = USUAL
    third: float = 1 / 3
    stages: tuple[int, ...] | None = (0, -1)
    paper: ClassVar[str] = "a paper"
    needs: ClassVar[tuple[str, ...]] = ("stages", "logits")
    of_something: ClassVar[object] = object()
    declared: ClassVar[int]

class Module(Base):
    deploys = "a peer"
    paths: tuple[str, ...] = ("a",)
    declared: int

    def __init__(self, first, second=2, *more, third=3.0, fourth, **others):
        """Not the class's."""

def function(one, two: str = "x"):
    """Does."""

same = Settings
TABLE = {
    "settings": same, "module": Module, "function": function, "here": Here,
    "partial": partial(Here, first=4), "nested": partial(Module, first=None, third=USUAL),
}
WRONG = {"call": open("x")}
SPREAD = {**TABLE}
BARE = {"gone": Gone}
NO_TABLE = dict(a=1)
'''


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A package of two modules in the place of this one."""
    (tmp_path / "named.py").write_text(SOURCE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("from metamixer.other.deep import Elsewhere\nfrom math import pi\n")
    (tmp_path / "other" / "deep.py").write_text('class Elsewhere:\n    """``Deep`` down."""\n')
    monkeypatch.setattr(catalogue, "_FOLDER", tmp_path)
    catalogue._bindings.cache_clear()
    yield
    catalogue._bindings.cache_clear()


@pytest.mark.usefixtures("written")
def test_what_source_can_say():
    entries = {row[0]: catalogue._entry(*row) for row in catalogue._rows("named", "TABLE")}
    settings = entries["settings"]
    assert (settings.doc, settings.line) == ("One line.\n\nMore.", "One line.")
    assert settings.settings == {"must": ..., "usual": 0.25, "third": 1 / 3, "stages": (0, -1)}
    assert settings.constants == {"paper": "a paper", "needs": ("stages", "logits")}
    module = entries["module"]
    assert module.settings == {"first": ..., "second": 2, "third": 3.0, "fourth": ...}
    assert (module.doc, module.constants) == ("", {"deploys": "a peer", "paths": ("a",)})
    assert entries["function"].settings == {"one": ..., "two": "x"}
    assert (entries["here"].line, entries["here"].settings) == ("Deep down.", {})
    assert (entries["partial"].line, entries["partial"].fixed) == ("Deep down.", {"first": 4})
    assert entries["nested"].fixed == {"first": None, "third": 0.25}
    assert entries["nested"].settings == {"second": 2, "fourth": ...}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("WRONG", r"'call' is open\('x'\) in metamixer.config.registry, not a class"),
        ("SPREAD", r"has a key that is no text: \*\*"),
        ("BARE", "metamixer.config.registry has no 'Gone' at its top level"),
        ("NO_TABLE", "metamixer.config.registry.NO_TABLE is no dict literal"),
        ("ABSENT", "has no 'ABSENT'"),
    ],
)
@pytest.mark.usefixtures("written")
def test_what_it_cannot_read_is_said(table, said):
    with pytest.raises(LookupError, match=said):
        [catalogue._entry(*row) for row in catalogue._rows("named", table)]


@pytest.mark.usefixtures("written")
def test_names_from_outside_are_not_followed():
    with pytest.raises(LookupError, match="math is not a part of metamixer"):
        catalogue._find("metamixer.other", "pi")
