import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metamixer.core.text import clean, percent, spreadsheet_cell

anything = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates too


@given(anything)
def test_clean_text_is_one_printable_line_that_says_the_same(text):
    shown = clean(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")
    if text.isprintable():
        assert shown == text
    elif "\\" not in text:  # an escape in the text itself is left as it is
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Kätzchen 猫 🐈", "Kätzchen 猫 🐈"),
        ("x.jpg\nerror: lost", r"x.jpg\nerror: lost"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\u202egpj", r"a\u202egpj"),  # turns the direction of what follows
        ("\udcff", r"\udcff"),  # a byte of a file name that is no UTF-8
        (12.5, "12.5"),
    ],
)
def test_clean(text, shown):
    assert clean(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_become_text(text):
    assert spreadsheet_cell(text) == f"'{text}"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0")))
def test_cells_come_back_from_a_file(text):
    file = io.StringIO()
    csv.writer(file).writerow([spreadsheet_cell(text)])
    ((read,),) = csv.reader(io.StringIO(file.getvalue())) if text else (("",),)
    assert read.removeprefix("'") == text.removeprefix("'")
    assert not read.startswith(("=", "+", "-", "@", "\t"))


@pytest.mark.parametrize(
    ("share", "images", "text"),
    [
        (0.0, 0, "0.0 %"),
        (1.0, 9_999, "100.0 %"),
        (0.12345, 9_999, "12.3 %"),
        (0.12345, 10_000, "12.35 %"),  # one image of 10,000 is 0.01 %
        (1 / 3, 10**6, "33.33 %"),
        (float("nan"), 0, "nan %"),
    ],
)
def test_percent(share, images, text):
    assert percent(share, images) == text
