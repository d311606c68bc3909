"""Every module of the parts, of training and of runs has its tests in the mirror place."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "cohort", "mixers", "losses", "models", "data", "metrics", "training", "runs")
MODULES = sorted(
    path.relative_to(ROOT / "src" / "metamixer")
    for folder in FOLDERS
    for path in (ROOT / "src" / "metamixer" / folder).rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_tests_in_the_mirror_place(module):
    mirror = ROOT / "tests" / module.with_name(f"test_{module.name}")
    assert mirror.is_file(), f"src/metamixer/{module} has no tests in {mirror.relative_to(ROOT)}"
    assert "def test_" in mirror.read_text()


def test_there_are_modules_in_every_folder():
    assert {path.parts[0] for path in MODULES} == set(FOLDERS)
