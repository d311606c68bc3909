"""The tables in studies/ and docs/results.md are those of the committed rows."""

import re
import shutil
from pathlib import Path

import pytest

from metamixer.studies.run_study import table_of
from metamixer.studies.study_file import Study

ROOT = Path(__file__).parents[2]
FINISHED = sorted(ROOT.glob("studies/*/results.jsonl"))
COPIED = re.compile(r"<!-- (studies/\S+) -->\n\n(.*?)\n\n<!-- end -->", re.DOTALL)


@pytest.mark.parametrize("rows", FINISHED, ids=lambda rows: rows.parent.name)
def test_the_table_of_a_study_is_that_of_its_rows(rows, tmp_path):
    shutil.copy(rows, tmp_path)
    table = table_of(Study.read(rows.with_name("study.yaml")), tmp_path)
    assert rows.with_name("results.md").read_text(encoding="utf-8") == table.as_markdown()


def test_tables_in_the_documentation_are_those_of_the_studies():
    for file, table in COPIED.findall((ROOT / "docs/results.md").read_text(encoding="utf-8")):
        assert table.strip() == (ROOT / file).read_text(encoding="utf-8").strip(), file
