"""Plain words: texts for users and readers have none of the phrases that have to be looked up."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
import typer

from metamixer.cli.app import app

ROOT = Path(__file__).parents[1]
BANNED = re.compile(
    r"\b(would work|told|(go|goes|went|going) on|mend(s|ed|ing)?|by heart|to do with it|(is|are) worth"
    r"|figures|no word|looks? on)\b",
    re.IGNORECASE,
)
"""Better: works, reported, continue, fix, overfit, matters, metrics, ..."""

PYTHON = sorted(
    file for folder in ("src", "examples", "docs", "scripts", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted(
    file
    for folder in ("docs", "recipes", "studies", "src", ".github")
    for suffix in ("md", "yaml", "yml", "j2")
    for file in (ROOT / folder).rglob(f"*.{suffix}")
    if "build" not in file.parts
)
KEYS = re.compile(r"^figures: \[|\bfigures[.\[}]|in figures %|``figures``", re.MULTILINE)
"""The older key of study files, and the same key of ``model.json``."""


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


def prose(file):
    """Every sentence of a module with its line: docstrings, messages and comments; words alone are names and keys."""
    source = file.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def found_in(text):
    return BANNED.search(KEYS.sub("", text))


def commands():
    group = typer.main.get_command(app)
    return [("metamixer", group), *group.commands.items()]


@pytest.mark.parametrize("file", PYTHON, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_use_plain_words(file):
    found = [f"{line}: {match[0]!r} in {text!r}" for line, text in prose(file) if (match := found_in(text))]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_plain_words(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [f"{number}: {line}" for number, line in enumerate(lines, 1) if found_in(line)]


@pytest.mark.parametrize(("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_help_is_imperative(name, command):
    lines = [command.help, *(parameter.help for parameter in command.params if getattr(parameter, "help", None))]
    for line in lines:
        assert not BANNED.search(line), line
        assert not re.match(r"(Of|So many|Whether|Which|How)\b", line), line
        assert line[0].isupper() or line[0] == "[", line


def test_the_words_are_found():
    assert len(PYTHON) > 200
    assert len(PAGES) > 50
    assert found_in("a smaller one would work")
    assert found_in("it goes on")
    assert found_in("these figures")
    assert not found_in("recommended, amended, configures; figures: a key of its own".partition(";")[0])
    assert not found_in("figures: [accuracy, nll]")
    assert any(found_in(text) for _, text in prose(Path(__file__)))
