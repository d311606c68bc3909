"""Build the wheel, look into it, and use it in an empty environment, away from the repository.

    python scripts/release_check.py                # dependencies at the versions of constraints.txt
    python scripts/release_check.py --newest       # dependencies as a user gets them today

Needs uv. Exits with 1 at the first thing that is wrong.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USE = """
import metamixer
print(metamixer.__file__)
for name in metamixer.__all__:
    getattr(metamixer, name)
"""
TRAIN = ["train", "--data", "fashion-mini", "--peers", "resnet8,resnet8", "--out", "run", "--quiet", "--mixer", "none"]
COMMANDS = [
    ["--version"],
    ["list"],
    [*TRAIN, "data.train_limit=5", "train.epochs=1"],
    ["evaluate", "run", "--quick"],
    ["report", "run", "--out", "report.html"],
    ["predict", "run", "image.png", "--out", "predictions.csv"],
]


def fail(text: str) -> None:
    """Say what is wrong and stop."""
    print(f"release-check: {text}", file=sys.stderr)
    sys.exit(1)


def call(*words: str | Path, **settings: object) -> str:
    """What a command prints; the check stops if it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **settings)  # type: ignore[call-overload]
    if done.returncode:
        fail(f"{' '.join(map(str, words))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def check_versions() -> str:
    """The version, if all files that state one agree."""
    found = {
        "pyproject.toml": tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"],
        "src/metamixer/__init__.py": _stated("src/metamixer/__init__.py", r'^__version__ = "(.+)"$'),
        "CITATION.cff": _stated("CITATION.cff", r"^version: (.+)$"),
    }
    if len(set(found.values())) > 1:
        fail("the versions differ: " + ", ".join(f"{file} has {version}" for file, version in found.items()))
    return str(found["pyproject.toml"])


def _stated(file: str, pattern: str) -> str:
    lines = re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    return lines[0] if lines else "none"


def check_contents(wheel: Path) -> None:
    """Every file of the package that git keeps is in the wheel, and nothing else but the metadata."""
    kept = call("git", "ls-files", "src/metamixer", cwd=ROOT).split("\n")
    wanted = {name.removeprefix("src/") for name in kept if name}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    packed = {name for name in names if ".dist-info/" not in name}
    if packed != wanted:
        fail(f"the wheel lacks {sorted(wanted - packed)} and has {sorted(packed - wanted)} besides")
    licences = {Path(name).name for name in names if "/licenses/" in name}
    if not {"LICENSE", "LICENSE-fashion-mnist"} <= licences:
        fail(f"the wheel has the licences {sorted(licences)}; LICENSE and LICENSE-fashion-mnist belong to it")


def check_use(uv: str, wheel: Path, folder: Path, newest: bool) -> None:
    """Install the wheel into an empty environment and use it from there."""
    python = folder / "venv" / "bin" / "python"
    call(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv")
    pins = [] if newest else ["-c", ROOT / "constraints.txt"]
    call(uv, "pip", "install", "--quiet", "--python", python, *pins, wheel)
    call(uv, "pip", "check", "--python", python)
    work = folder / "work"
    work.mkdir()
    alone = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    call(python, "-c", "from PIL import Image; Image.new('L', (28, 28)).save('image.png')", cwd=work, env=alone)
    where = call(python, "-c", USE, cwd=work, env=alone)
    if not Path(where.strip()).is_relative_to(folder):
        fail(f"metamixer was imported from {where.strip()} and not from the wheel")
    for words in COMMANDS:
        call(python.with_name("metamixer"), *words, cwd=work, env=alone)
        print(f"metamixer {' '.join(words)}: ok", flush=True)


def main(words: list[str]) -> None:
    """Check everything."""
    uv = str(Path(sys.executable).with_name("uv"))
    version = check_versions()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(uv, "build", "--quiet", "--out-dir", folder / "dist", ROOT)
        (wheel,) = (folder / "dist").glob(f"metamixer-{version}-*.whl")
        check_contents(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
        check_use(uv, wheel, folder, newest="--newest" in words)


if __name__ == "__main__":
    main(sys.argv[1:])
