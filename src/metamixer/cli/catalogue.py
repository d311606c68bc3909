"""What a recipe can name, read from the package's source: to list it takes no torch, whose import takes seconds.

``metamixer.config.registry``, ``metamixer.models`` and ``metamixer.data`` hold the tables as dict literals. Here they
are parsed, and the names in them are followed through the package's own ``from X import Y`` to the class or function.
Nothing is imported (``importlib.util.find_spec`` would import the packages above a module, and they import torch), so
an entry that a program adds to a table while it runs is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_PACKAGE = __name__.rpartition(".")[0]
_FOLDER = Path(__file__).parent
_Node = ast.expr | ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Entry:
    """One name of a table.

    Args:
        name: in recipes.
        doc: the docstring; of a data set its summary.
        settings: with their defaults: plain values, or source text where that is no literal, or ``...`` where there
            is no default.
        fixed: settings that the name stands for, as ``depth`` is in ``resnet20 = partial(ResNet, depth=20)``.
        constants: what a class says of itself in assignments that are no settings (``paper = "..."``), literals only.
    """

    name: str
    doc: str
    settings: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The first line of the docstring, as plain text."""
        return self.doc.partition("\n")[0].replace("``", "")


def networks() -> list[Entry]:
    """The bundled networks.

    >>> [entry.fixed for entry in networks() if entry.name == "resnet20"]
    [{'depth': 20}]
    """
    return [_entry(*row) for row in _rows("models", "MODELS")]


def mixers() -> list[Entry]:
    """The mixers.

    >>> [entry.settings["lam"] for entry in mixers() if entry.name == "mixup"]
    ['batch']
    """
    return [_entry(*row) for row in _rows("named", "MIXERS")]


def losses() -> list[Entry]:
    """The losses."""
    return [_entry(*row) for row in _rows("named", "LOSSES")]


def data() -> list[Entry]:
    """The data sets that go by a name."""
    # DATASETS takes names and summaries from STANDARD, whose values are calls of a dataclass.
    rows = _rows("datasets.standard", "STANDARD")
    return [Entry(name, _call(module, node)["summary"]) for name, module, node in rows]


def _rows(module: str, table: str) -> Iterator[tuple[str, str, _Node]]:
    """Every name of a table, with what it stands for and the module where that is written."""
    home, node = _find(f"{_PACKAGE}.{module}", table)
    if not isinstance(node, ast.Dict):
        raise LookupError(f"{home}.{table} is no dict literal, so it cannot be read without running it")
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant):
            raise LookupError(f"{home}.{table} has a key that is no text: {ast.unparse(key) if key else '**'}")
        yield str(key.value), *_follow(home, value)


def _entry(name: str, module: str, node: _Node) -> Entry:
    """What the definition of a class or a function tells, or that of the one in ``partial(...)``."""
    fixed: dict[str, Any] = {}
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("partial", "functools.partial"):
        fixed = {word.arg: _value(module, word.value) for word in node.keywords if word.arg}
        module, node = _follow(module, node.args[0])
    if isinstance(node, ast.ClassDef):
        settings, constants = _settings(module, node), _constants(node)
    elif isinstance(node, ast.FunctionDef):
        settings, constants = _parameters(module, node), {}
    else:
        raise LookupError(f"{name!r} is {ast.unparse(node)} in {module}, not a class, a function or partial(...)")
    free = {key: value for key, value in settings.items() if key not in fixed}
    return Entry(name, ast.get_docstring(node) or "", free, fixed, constants)


def _settings(module: str, cls: ast.ClassDef) -> dict[str, Any]:
    """The fields of a dataclass, or what ``__init__`` takes."""
    if _is_dataclass(cls):
        return {
            each.target.id: _value(module, each.value) if each.value else ...
            for each in cls.body
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not _is_classvar(each)
        }
    for each in cls.body:
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            named = _parameters(module, each)
            del named[each.args.args[0].arg]
            return named
    return {}


def _parameters(module: str, function: ast.FunctionDef) -> dict[str, Any]:
    given = function.args
    named: dict[str, Any] = {each.arg: ... for each in given.args}
    for each, default in zip(reversed(given.args), reversed(given.defaults), strict=False):
        named[each.arg] = _value(module, default)
    for each, maybe in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        named[each.arg] = ... if maybe is None else _value(module, maybe)
    return named


def _constants(cls: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in cls.body:
        if isinstance(each, ast.Assign):
            targets = each.targets
        elif isinstance(each, ast.AnnAssign) and (_is_classvar(each) or not _is_dataclass(cls)):
            targets = [each.target]
        else:
            continue
        try:
            value = ast.literal_eval(each.value) if each.value else ...
        except ValueError:
            continue
        if value is not ...:
            found |= {target.id: value for target in targets if isinstance(target, ast.Name)}
    return found


def _is_dataclass(cls: ast.ClassDef) -> bool:
    return any(ast.unparse(each).partition("(")[0].split(".")[-1] == "dataclass" for each in cls.decorator_list)


def _is_classvar(each: ast.AnnAssign) -> bool:
    return ast.unparse(each.annotation).partition("[")[0].split(".")[-1] == "ClassVar"


def _call(module: str, node: _Node) -> dict[str, Any]:
    """The arguments of a call of a dataclass, by name."""
    if not isinstance(node, ast.Call):
        raise LookupError(f"{ast.unparse(node)} in {module} is no call of a dataclass")
    home, cls = _follow(module, node.func)
    if not isinstance(cls, ast.ClassDef):
        raise LookupError(f"{ast.unparse(node)} in {module} is no call of a class")
    by_place = zip(_settings(home, cls), node.args, strict=False)
    by_name = ((word.arg, word.value) for word in node.keywords if word.arg)
    return {name: _value(module, value) for name, value in (*by_place, *by_name)}


def _value(module: str, node: ast.expr) -> Any:
    """A literal's value, also where it goes by a name; of anything else the source text."""
    try:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):  # 80 / 300 epochs
            return ast.literal_eval(node.left) / ast.literal_eval(node.right)
        return ast.literal_eval(_follow(module, node)[1] if isinstance(node, ast.Name) else node)
    except (ValueError, LookupError):
        return ast.unparse(node)


def _follow(module: str, node: _Node) -> tuple[str, _Node]:
    return _find(module, node.id) if isinstance(node, ast.Name) else (module, node)


def _find(module: str, name: str) -> tuple[str, _Node]:
    """What a name of a module stands for, and the module where that is written."""
    bound = _bindings(module).get(name)
    if bound is None:
        raise LookupError(f"{module} has no {name!r} at its top level")
    return _find(*bound) if isinstance(bound, tuple) else _follow(module, bound)


@cache
def _bindings(module: str) -> dict[str, _Node | tuple[str, str]]:
    """What the statements of a module bind; of an imported name the module and its name there."""
    package, *parts = module.split(".")
    if package != _PACKAGE:
        raise LookupError(f"{module} is not a part of {_PACKAGE}, so its names are not followed")
    place = _FOLDER.joinpath(*parts)
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    bound: dict[str, _Node | tuple[str, str]] = {}
    for each in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef):
            bound[each.name] = each
        elif isinstance(each, ast.ImportFrom) and each.module and not each.level:
            bound |= {alias.asname or alias.name: (each.module, alias.name) for alias in each.names}
        elif isinstance(each, ast.Assign | ast.AnnAssign) and each.value:
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            bound |= {target.id: each.value for target in targets if isinstance(target, ast.Name)}
    return bound
