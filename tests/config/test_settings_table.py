"""The table of settings has every setting, with its default and what it does."""

import pytest

from metamixer.config.recipe import Recipe
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.config.settings_table import documented, markdown, sections, settings
from tests.command import metamixer

ROWS = list(settings())


def test_every_setting_of_a_full_recipe_is_there():
    full = Recipe.of({}).as_dict()
    for section in ("data", "optim", "train"):
        assert {row.key for row in ROWS if row.section == section} == {f"{section}.{key}" for key in full[section]}
    assert {row.key for row in ROWS if row.section == "peers"} == {f"peers.N.{key}" for key in full["peers"][0]}
    assert sections() == ["data", "peers", "optim", "train"] + [
        f"{kind} {name}"
        for kind, table in (("mixer", MIXERS), ("loss", LOSSES))
        for name in table
        if any(row.section == f"{kind} {name}" for row in ROWS)
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section} {row.key}")
def test_a_row_is_whole_and_its_default_is_accepted(row):
    assert row.accepted
    assert len(row.meaning) > 3, "its docstring does not say what it does"
    if row.section == "peers" or row.default == "":
        return
    key = row.key
    part = [f"{row.section.split()[0]}={row.section.split()[1]}"] if " " in row.section else []
    assert Recipe.of({}, [*part, f"{key}={row.default}"])
    assert "None" not in row.default + row.meaning, "a recipe writes null"


def test_docstrings_give_what_stands_under_args():
    class Base:
        """One.

        Args:
            first, second: of the
                base ``class``.
            third: stays.
        """

    class Derived(Base):
        """Two.

        Args:
            second: its own: with a colon.

        >>> third: no setting
        """

    assert documented(Derived) == {
        "first": "of the base `class`.",
        "second": "its own: with a colon.",
        "third": "stays.",
    }


def test_list_settings_shows_all_or_one_section():
    everything = metamixer("list", "settings").stdout
    assert all(row.key in everything for row in ROWS)
    one = metamixer("list", "settings", "train").stdout
    assert "train.epochs" in one
    assert "data.name" not in one
    both = metamixer("list", "settings", "cutnmix").stdout
    assert "mixer cutnmix" in both
    assert "loss cutnmix" in both
    assert "accepted are data, peers" in metamixer("list", "settings", "nothing", code=2).stderr
    assert "only `list settings`" in metamixer("list", "losses", "dml", code=2).stderr


def test_markdown_has_a_table_for_each_section():
    text = markdown()
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == sections()
    for line in text.splitlines():
        if line.startswith("| "):
            assert len(line.replace("\\|", "").split("|")) == 6, line
