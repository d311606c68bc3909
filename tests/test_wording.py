"""Plain words: what is shown to users has none of the phrases that one has to look up."""

import ast
import re
from pathlib import Path

import pytest
import typer

from metamixer.cli.app import app

ROOT = Path(__file__).parents[1]
BANNED = re.compile(r"\bwould work\b|\btold\b|\bgoes on\b|\bgo on with\b|\bfigures\b|\blearn by heart\b|\bmends?\b")
SHOWN = sorted((ROOT / "src" / "metamixer" / "cli").glob("*.py"))


def texts(file):
    """The text constants of a module without its docstrings, names of modules and keys; f-strings by their parts."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def commands():
    group = typer.main.get_command(app)
    return [("metamixer", group), *group.commands.items()]


@pytest.mark.parametrize("file", SHOWN, ids=lambda file: file.name)
def test_terminal_lines_use_plain_words(file):
    found = [f"{file.name}:{line}: {text!r}" for line, text in texts(file) if BANNED.search(text)]
    assert not found


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_help_is_imperative(name, command):
    lines = [command.help, *(parameter.help for parameter in command.params if getattr(parameter, "help", None))]
    for line in lines:
        assert not BANNED.search(line), line
        assert not re.match(r"(Of|So many|Whether|Which|How)\b", line), line
        assert line[0].isupper() or line[0] == "[", line


def test_the_words_are_found():
    assert BANNED.search("a smaller one would work")
    assert BANNED.search("it goes on")
    assert not BANNED.search("recommended, amended, configures")
