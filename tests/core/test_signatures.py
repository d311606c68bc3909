"""Functions stay callable: what needs more than a dozen arguments is given as one value."""

import ast
from pathlib import Path

import metamixer

PACKAGE = Path(metamixer.__file__).parent
MOST = 12


def parameters(function):
    """How many arguments a function takes, without ``self`` and ``cls``."""
    of = function.args
    named = [one.arg for one in (*of.posonlyargs, *of.args, *of.kwonlyargs) if one.arg not in ("self", "cls")]
    return len(named) + (of.vararg is not None) + (of.kwarg is not None)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_parameters_are_counted():
    source = "class A:\n def f(self, a, /, b, *c, d=1, **e): ...\nasync def g(cls, x): ..."
    assert [parameters(each) for each in functions(ast.parse(source))] == [1, 5]


def test_no_function_takes_more_than_twelve_arguments():
    """Options of the command line aside."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0]
        if layer != "cli":
            for function in functions(ast.parse(path.read_text())):
                if (count := parameters(function)) > MOST:
                    found[f"{path.relative_to(PACKAGE)}:{function.name}"] = count
    assert not found
