"""The command: files, pages and messages."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import running, startup
from benchmarks.__main__ import app
from benchmarks.report import Findings, markdown
from benchmarks.results import Figure, Measured, Missing, Section, Suite
from benchmarks.settings import Settings
from metamixer.runs.environment import environment

NASTY = "$x_1$ | [red]\x1b[31m"


def bench(*words):
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture
def no_processes(monkeypatch):
    monkeypatch.setattr(startup, "_process", lambda command: lambda: None)


def test_the_folder(tmp_path, no_processes):
    out = tmp_path / "a" / "b"
    result = bench("--suite", "startup", "--quick", "--out", out, "--threads", "1")
    assert result.exit_code == 0, result.output
    found = json.loads((out / "bench.json").read_text())
    assert [suite["name"] for suite in found["suites"]] == ["startup"]
    assert found["settings"]["quick"]
    assert {"processor", "cpus", "threads", "gpu", "versions"} <= set(found["environment"])
    assert {row["bar"]["key"]: row["verdict"] for row in found["bars"]}["two"] == "not measured"
    page = (out / "bench.md").read_text()
    assert found["environment"]["processor"] in page
    assert "| metamixer --help | startup: metamixer --help | ≤ 0.5 s |" in page
    assert "written:" in result.stdout
    assert "verdict" in result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--suite", "stepp"], "'stepp' is not a suite; expected step, data, peers"),
        (["--suite", ","], "no suite is named"),
        (["--networks", "resnet21"], "'resnet21' is not a network"),
        (["--precision", "16"], "'16' is not a precision; expected 32, bf16"),
        (["--rounds", "0"], "--rounds 0"),
        (["--threads", "0"], "--threads 0"),
        (["--batch-size", "1"], "--batch-size 1"),
    ],
)
def test_what_cannot_be_measured(words, said, tmp_path):
    result = bench(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert said in result.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("")
    result = bench("--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "is a file" in result.stderr


def test_a_suite_that_fails_costs_its_own_numbers_alone(tmp_path, monkeypatch, no_processes):
    monkeypatch.setattr(running, "SUITES", {"broken": ("no_such_module",), "startup": ("startup",)})
    found = running.run(Settings(rounds=1, quick=True), ["broken", "startup"], tmp_path)
    assert "no_such_module" in found.suites[0].sections[0].missing[0].reason
    assert found.suites[1].sections[0].measured


def test_names_cannot_break_the_page():
    section = Section(
        NASTY,
        (Measured(NASTY, (1.0, 2.0), note=NASTY),),
        (Figure(NASTY, (1.0, -2.0), -2.0, "s", bar="import"),),
        (Missing(NASTY, NASTY),),
        (NASTY,),
    )
    suite = Suite("step", (section,), 1.0)
    page = markdown(Findings(Settings(), environment(), (suite,)))
    assert "\x1b" not in page
    assert all(line.count("|") % 2 == 0 or line.count("|") in (5, 7) for line in page.splitlines() if line[:1] == "|")
