"""Write results.md of every study in studies/ from its results.jsonl.

python scripts/study_tables.py
"""

from pathlib import Path

from metamixer.studies.run_study import table_of
from metamixer.studies.study_file import Study

ROOT = Path(__file__).parents[1]

if __name__ == "__main__":
    for rows in sorted(ROOT.glob("studies/*/results.jsonl")):
        table = table_of(Study.read(rows.with_name("study.yaml")), rows.parent)
        rows.with_name("results.md").write_text(table.as_markdown(), encoding="utf-8")
