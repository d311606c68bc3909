"""The tables in studies/ are those of the committed rows, and the figures of the pages are those of the tables."""

import re
import shutil
from pathlib import Path

import pytest

from metamixer.studies.run_study import table_of
from metamixer.studies.study_file import Study

ROOT = Path(__file__).parents[2]
FINISHED = sorted(ROOT.glob("studies/*/results.jsonl"))
PAGES = ["README.md", "docs/results.md", "docs/how-strong-how-long.md", "docs/engineer.md", "docs/data.md"]
SECTION = re.compile(r"^(?=##+ )", re.MULTILINE)
NUMBER = r"([+−]?\d+\.\d+)"
MEAN = re.compile(rf"{NUMBER} ± {NUMBER}")
INTERVAL = re.compile(rf"{NUMBER} \\?\[{NUMBER}, {NUMBER}\\?\]")


def test_figures_are_found_and_differences_may_be_turned_round():
    assert figures("48.6 ± 0.3 | +5.0 \\[+4.4, +5.7\\]") == {(48.6, 0.3), (5.0, 4.4, 5.7)}
    assert figures("−0.8 [−1.2, −0.4]") == {(-0.8, -1.2, -0.4)}
    assert turned((5.0, 4.4, 5.7)) == (-5.0, -5.7, -4.4)


@pytest.mark.parametrize("rows", FINISHED, ids=lambda rows: rows.parent.name)
def test_the_table_of_a_study_is_that_of_its_rows(rows, tmp_path):
    shutil.copy(rows, tmp_path)
    table = table_of(Study.read(rows.with_name("study.yaml")), tmp_path)
    assert rows.with_name("results.md").read_text(encoding="utf-8") == table.as_markdown()


@pytest.mark.parametrize("page", PAGES)
def test_means_and_intervals_in_the_documentation_are_those_of_the_studies_linked_there(page):
    checked = 0
    for section in SECTION.split((ROOT / page).read_text(encoding="utf-8")):
        studies = set(re.findall(r"studies/([\w-]+)/(?:study\.yaml|results\.md)", section))
        if not (tables := [ROOT / "studies" / name / "results.md" for name in studies]):
            continue
        known = set().union(*(figures(table.read_text(encoding="utf-8")) for table in tables))
        shown = figures(section)
        assert shown <= known | {turned(figure) for figure in known}, section.splitlines()[0]
        checked += len(shown)
    assert checked > 0


def figures(text: str) -> set[tuple[float, ...]]:
    """Each "mean ± standard deviation" and "difference [interval]" in ``text``."""
    found = [match.groups() for pattern in (MEAN, INTERVAL) for match in pattern.finditer(text)]
    return {tuple(float(number.replace("−", "-")) for number in groups) for groups in found}


def turned(figure: tuple[float, ...]) -> tuple[float, ...]:
    """A difference with its interval the other way round."""
    return (-figure[0], *(-end for end in reversed(figure[1:])))
