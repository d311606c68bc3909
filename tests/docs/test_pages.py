"""Tutorials run as they are printed, every method has a card, commands and recipes on all pages are accepted."""

import inspect
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
import typer

from metamixer.cli.app import app
from metamixer.cli.recipe_args import Sugar, recipe_of
from metamixer.config.registry import LOSSES, MIXERS
from tests.command import metamixer

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"(?:Save this as `(?P<file>[^`]+)`:\n\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
IMPORT = re.compile(r"^from metamixer[.\w]* import (?:\([^)]*\)|[^\n(]+)$", re.MULTILINE)


def commands(code):
    """The words of each call of metamixer in a block; a comment and an option in [brackets] are not part of it."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["metamixer"]:
            yield words[1:]


@pytest.mark.timeout(900)  # a study starts processes
@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_is_printed(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {"__name__": page.stem}
    ran = 0
    for block in FENCE.finditer(page.read_text()):
        if block["file"]:
            Path(block["file"]).write_text(block["code"])
        elif block["kind"] == "python":
            exec(compile(block["code"], f"{page.name}", "exec"), names)  # noqa: S102
            ran += 1
        elif block["kind"] == "sh":
            for words in commands(block["code"]):
                metamixer(*words)
                ran += 1
    assert ran >= 3


def cases(of):
    """A case for each page that has something to check."""
    found = {page: list(of(page)) for page in PAGES}
    return [pytest.param(each, id=str(page.relative_to(ROOT))) for page, each in found.items() if each]


def calls(page):
    """Every call of metamixer in a fenced block, but for those that leave words out."""
    for block in FENCE.finditer(page.read_text()):
        if block["kind"] in ("", "sh", "bash"):
            yield from (words for words in commands(block["code"]) if not {"...", "…"} & {*words})


@pytest.mark.parametrize("words", cases(calls))
def test_commands_have_options_that_exist_and_recipes_that_are_accepted(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    group = typer.main.get_command(app)
    for name, *rest in words:
        if name.startswith("-"):
            metamixer(name)
            continue
        with group.make_context("metamixer", [name]) as context:
            command = group.get_command(context, name)
            assert command, name
            given, left, _ = command.make_parser(click.Context(command)).parse_args(rest)
        assert not left, rest
        ours = "resume" not in given and ":" not in given.get("loss", "")  # a method of the reader's is not installed
        if name in ("train", "preview") and ours:
            sugar = {key: value for key, value in given.items() if key in Sugar.__dataclass_fields__}
            recipe_of(given["words"] or (), Sugar(**sugar))


@pytest.mark.parametrize("statements", cases(lambda page: IMPORT.findall(page.read_text())))
def test_imports_are_those_of_the_package(statements):
    for statement in statements:
        exec(statement, {})  # noqa: S102


@pytest.mark.parametrize("kind", ["methods", "mixers"])
def test_every_method_has_a_card(kind):
    table = {"methods": LOSSES, "mixers": MIXERS}[kind]
    assert {card.stem for card in (DOCS / kind).glob("*.md")} == set(table)


def test_signatures_are_shown_without_ranges_and_keep_them(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import metamixer_docs as docs

    for registry in (LOSSES, MIXERS):
        for name in registry:
            function = registry[name].__init__
            before = dict(function.__annotations__)
            docs.plain_types(None, function, True)
            shown = str(inspect.signature(function))
            docs.with_ranges_again(None)
            assert not re.search(r"FieldInfo|Share|Weight|Positive|Count", shown)
            assert function.__annotations__ == before
    docs.plain_types(None, MIXERS["metamixer"].__init__, True)
    assert MIXERS["metamixer"].__init__.__annotations__["stages"] == tuple[int, ...] | None
    docs.with_ranges_again(None)


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        (("all rows", "../studies/main/results.md", None), "{download}`all rows <../studies/main/results.md>`"),
        (("the study", "../studies/main/study.yaml", None), "[the study](../studies/main/study.yaml)"),
        (("studies", "../studies", None), "studies"),
        (("changes", "../CHANGELOG.md", "#unreleased"), "[changes](changelog.md#unreleased)"),
    ],
)
def test_links_out_of_the_documentation_open_or_download_what_they_name(link, shown, monkeypatch):
    docs = _site(monkeypatch, source="")
    assert docs._outward("results", *link) == shown


def test_links_out_of_the_documentation_lead_to_the_source_once_it_is_public(monkeypatch):
    docs = _site(monkeypatch, source="https://example.org/tree")
    assert docs._outward("results", "all rows", "../studies/main/results.md", None) == (
        "[all rows](https://example.org/tree/studies/main/results.md)"
    )


def _site(monkeypatch, source):
    monkeypatch.syspath_prepend(str(DOCS))
    import metamixer_docs as docs

    monkeypatch.setattr(docs, "source_url", lambda: source)
    return docs
