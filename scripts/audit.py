"""Known vulnerabilities of the pinned versions, as pip-audit knows them.

Where pip-audit cannot be had, or its service cannot be reached, that is said and is no failure: nothing was found, and
nothing was looked at. Exits with 1 if a pinned version is known to be vulnerable.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# An environment of its own, so that nothing is installed beside what is audited.
_TOOL = [sys.executable, "-m", "uv", "tool", "run", "--from", "pip-audit", "pip-audit"]
_HOW = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]


def ask(pins: Path) -> list[dict[str, Any]] | str:
    """What pip-audit says of each pin, or why it says nothing."""
    try:
        done = subprocess.run([*_TOOL, "-r", str(pins), *_HOW], capture_output=True, text=True, timeout=900)
        return json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"pip-audit cannot be run: {error}"
    except (ValueError, KeyError, TypeError):
        return (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]


def judge(found: list[dict[str, Any]] | str) -> tuple[list[str], int]:
    """Lines to show, and the exit code."""
    if isinstance(found, str):
        return [f"not audited: {found}"], 0
    bad = [one for one in found if one.get("vulns")]
    asked = [one for one in found if "skip_reason" not in one]
    lines = [f"{one['name']} {one['version']}: {', '.join(each['id'] for each in one['vulns'])}" for one in bad]
    if not asked:
        return ["not audited: the service knows none of the versions, or cannot be reached"], 0
    skipped = f"; not known to the service: {len(found) - len(asked)}" if len(asked) < len(found) else ""
    return [*lines, f"{len(asked)} versions audited, {len(bad)} with known vulnerabilities{skipped}"], 1 if bad else 0


def main() -> int:
    lines, code = judge(ask(Path(sys.argv[1] if len(sys.argv) > 1 else "constraints.txt")))
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
