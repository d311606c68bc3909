import os
import sys

import pytest

from metamixer.core import trusted_imports as imports


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch):
    monkeypatch.delenv(imports.VARIABLE, raising=False)


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module that leaves a file where it was imported."""
    (tmp_path / "own_nets.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "class Group:\n    class Net: depth = 3\n    def other(self): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("own_nets", None)


def test_nothing_runs_that_nobody_allowed(nets):
    for allowed in ((), ("own_nets:Group",), ("other:Net",)):
        imports.allow(*allowed)
        with pytest.raises(imports.ImportRefused, match=r"'own_nets:Group\.Net' .*--allow-imports"):
            imports.load("own_nets:Group.Net")
    assert not (nets / "ran").exists()
    assert "own_nets" not in sys.modules


@pytest.mark.parametrize("how", [lambda: imports.allow("own_nets:Group.Net"), imports.allow_all])
def test_what_was_allowed_is_imported(how, nets):
    how()
    assert imports.load("own_nets:Group.Net").depth == 3
    assert (nets / "ran").exists()


def test_the_folder_that_one_is_in_comes_last(nets):
    (nets / "json.py").write_text("raise AssertionError\n")
    imports.allow("own_nets:Group", "json:dumps")
    imports.load("own_nets:Group")
    assert imports.load("json:dumps")([1]) == "[1]"
    assert sys.path[-1] == str(nets)
    imports.load("own_nets:Group")
    assert sys.path.count(str(nets)) == 1


@pytest.mark.parametrize(
    "name", ["own_nets", "own_nets:", ":Group", ".own_nets:Group", "own_nets:Group()", "a b:c", ""]
)
def test_what_is_no_import_path(name, nets):
    imports.allow_all()
    with pytest.raises(ImportError):
        imports.load(name)
    assert not (nets / "ran").exists()


@pytest.mark.usefixtures("nets")
def test_what_is_not_there():
    imports.allow_all()
    with pytest.raises(AttributeError, match="Nothing"):
        imports.load("own_nets:Nothing")
    with pytest.raises(ModuleNotFoundError, match="no_such_nets"):
        imports.load("no_such_nets:Net")


def test_names_add_up_in_the_environment():
    imports.allow("a:A", "b:B")
    imports.allow("b:B", "c:C")
    assert os.environ[imports.VARIABLE].split() == ["a:A", "b:B", "c:C"]
    imports.allow_all()
    imports.allow("d:D")
    assert os.environ[imports.VARIABLE] == "all"
    imports.check("anything:At.all")


def test_scope_forgets_what_was_allowed_inside():
    with imports.scope():
        imports.allow("a:A")
        assert imports.anything_allowed()
    assert imports.VARIABLE not in os.environ
    assert not imports.anything_allowed()
    imports.allow("a:A")
    with imports.scope():
        imports.allow_all()
    assert os.environ[imports.VARIABLE] == "a:A"


@pytest.mark.parametrize(
    ("value", "networks", "names"),
    [
        ("nets:Net", False, ["nets:Net"]),
        ("resnet20", False, []),
        ("a note: this is text", False, []),
        ("timm:resnet18", False, ["timm:resnet18"]),
        ("timm:resnet18", True, []),
        ("torchvision:resnet18", True, []),
        ("timm:local-dir:x", True, ["timm:local-dir:x"]),
        ("timmy:Net", True, ["timmy:Net"]),
        ({"peers": [{"name": "a:A"}, ("b:B", 3, None)], "loss": {"name": "dml", "deep": {"x": "c:C"}}}, True,
         ["a:A", "b:B", "c:C"]),
        ({"a:A": 1}, True, []),
    ],
)  # fmt: skip
def test_names_inside_of_plain_values(value, networks, names):
    assert imports.named_in(value, networks=networks) == names
