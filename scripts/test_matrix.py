"""Run the tests on the oldest and on the newest supported Python, torch and other dependencies.

    python scripts/test_matrix.py                                  # both, the whole suite
    python scripts/test_matrix.py newest -- -n 0 tests/losses      # one of them, a part of the tests
    NEWEST_PYTHON=/opt/python3.14/bin/python python scripts/test_matrix.py newest

`oldest` installs the least version that pyproject.toml allows of every direct dependency, `newest` the latest that the
registry gives. Each gets an environment in build/matrix. uv finds or fetches the interpreter of the version that the
classifiers name; where the newest cannot be had, the next older one is taken, and the summary says which it was.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTION = {"oldest": "lowest-direct", "newest": "highest"}
SHOWN = ("torch", "torchvision", "lightning_fabric", "timm", "pydantic", "numpy", "pytest")


def pythons(which: str) -> list[str]:
    """What to try, best first: the interpreter that the environment names, or the versions of the classifiers."""
    if named := os.environ.get(f"{which.upper()}_PYTHON"):
        return [named]
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
    found = [found[1] for line in lines if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))]
    found.sort(key=lambda version: int(version[2:]))
    return found[:1] if which == "oldest" else found[::-1]


def environment(which: str, uv: str) -> Path | None:
    """A new environment with the project in it; None if no interpreter was found or the packages do not install."""
    folder = ROOT / "build" / "matrix" / which
    for version in pythons(which):
        if subprocess.run([uv, "venv", "--quiet", "--clear", "--python", version, str(folder)]).returncode == 0:
            break
        print(f"{which}: no Python {version}", flush=True)
    else:
        return None
    python = folder / "bin" / "python"
    words = [uv, "pip", "install", "--quiet", "--python", str(python), "--resolution", RESOLUTION[which]]
    done = subprocess.run([*words, "-e", f"{ROOT}[dev]"])
    return python if done.returncode == 0 else None


def versions(python: Path) -> str:
    """Python and the main packages of an environment, on one line."""
    code = (
        "import importlib.metadata as m, platform; "
        f"print('Python', platform.python_version(), *(f'{{n}} {{m.version(n)}}' for n in {SHOWN}), sep=', ')"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main(words: list[str]) -> int:
    """Run what the words name; 1 if anything failed."""
    cut = words.index("--") if "--" in words else len(words)
    chosen, tests = words[:cut] or list(RESOLUTION), words[cut + 1 :] or ["-n", "2", "--dist", "worksteal"]
    if unknown := set(chosen) - set(RESOLUTION):
        print(f"{', '.join(sorted(unknown))}: not one of {', '.join(RESOLUTION)}", file=sys.stderr)
        return 2
    uv = str(Path(sys.executable).with_name("uv"))
    uv = uv if Path(uv).exists() else shutil.which("uv") or ""
    if not uv:
        print("uv is needed: pip install uv", file=sys.stderr)
        return 2
    summary = []
    for which in chosen:
        python = environment(which, uv)
        if python is None:
            summary.append((which, "not installed", False))
            continue
        print(f"{which}: {versions(python)}", flush=True)
        code = subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT).returncode
        summary.append((which, versions(python), code == 0))
    for which, what, passed in summary:
        print(f"{which}: {'passed' if passed else 'FAILED'}: {what}")
    return 0 if all(passed for *_, passed in summary) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
