"""Write results.md of every study in studies/ from its results.jsonl, and the copies of the tables in docs/results.md.

    python scripts/study_tables.py

A copy stands between `<!-- studies/NAME/results.md -->` and `<!-- end -->`.
"""

import re
from pathlib import Path

from metamixer.studies.run_study import table_of
from metamixer.studies.study_file import Study

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    for rows in sorted(ROOT.glob("studies/*/results.jsonl")):
        table = table_of(Study.read(rows.with_name("study.yaml")), rows.parent)
        rows.with_name("results.md").write_text(table.as_markdown(), encoding="utf-8")
    page = ROOT / "docs/results.md"
    pattern = re.compile(r"<!-- (studies/\S+) -->\n.*?<!-- end -->", re.DOTALL)

    def copy(found: re.Match[str]) -> str:
        return f"<!-- {found[1]} -->\n\n{(ROOT / found[1]).read_text(encoding='utf-8').strip()}\n\n<!-- end -->"

    page.write_text(pattern.sub(copy, page.read_text(encoding="utf-8")), encoding="utf-8")
