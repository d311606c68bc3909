"""The studies behind docs/results.md, in pieces that can be stopped.

    python scripts/first_light.py run cifar10 --data cifar10-jpeg.tar.gz
    python scripts/first_light.py run fashion --data FOLDER_OF_FASHION_MNIST
    python scripts/first_light.py run budget --data cifar10-jpeg.tar.gz --seeds 0 1
    python scripts/first_light.py run precision --data cifar10-jpeg.tar.gz
    python scripts/first_light.py table

A cell that is finished is not run again, and one that was stopped is resumed. Several may run at once.
Each cell is one `metamixer train`, so that anyone can repeat a single one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

_METAMIXER = ["mixer=metamixer", "mixer.global_alpha=1"]
METHODS = {
    "independent": ["loss=independent", "mixer=none"],
    "dml": ["mixer=none"],
    "dml + mixup": ["mixer=mixup"],
    "dml + cutmix": ["mixer=cutmix"],
    "dml + manifold-mixup": ["mixer=manifold-mixup"],
    "dml + same-class-cutmix (local only)": ["mixer=same-class-cutmix"],
    "dml + metamixer": _METAMIXER,
}
_WEAK = [*_METAMIXER, "mixer.local_probability=0.3", "mixer.global_probability=0.3", "mixer.until=0.5"]
BUDGETS = {
    f"{name}, {epochs} epochs": [*settings, f"train.epochs={epochs}"]
    for epochs in (25, 50, 100, 200)
    for name, settings in {
        "dml": ["mixer=none"],
        "dml + metamixer": _METAMIXER,
        "dml + weak metamixer": _WEAK,
    }.items()
}
# The recipes train in bf16: what would fp32 have given? Compare with the same rows of `cifar10`.
PRECISION = {
    "dml, fp32": ["mixer=none", "train.precision=32"],
    "dml + metamixer, fp32": [*_METAMIXER, "train.precision=32"],
}
STUDIES = {"cifar10": METHODS, "fashion": METHODS, "budget": BUDGETS, "precision": PRECISION}
PER_CLASS = 100  # CIFAR-10 training files unpacked of each class; the recipe trains on half of them
RUNS = Path("runs/first-light")


def unpack(archive: Path) -> Path:
    """The first training files of each class and the whole test split. Members are read by name, none is extracted."""
    folder = RUNS / "cifar10-jpeg"
    complete = folder.with_suffix(".complete")
    if not complete.exists():
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = Path(member.name).parts[-3:]
                if not member.isfile() or len(parts) != 3 or parts[0] not in ("train", "test"):
                    continue
                if parts[0] == "train" and int(Path(parts[2]).stem) >= PER_CLASS:
                    continue
                target = folder.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
        complete.touch()
    return folder


def cell(dataset: str, row: str, seed: int) -> Path:
    name = row.split(" (")[0].replace(" + ", "-").replace(", ", "-").replace(" ", "-")
    return RUNS / dataset / f"{name}-seed{seed}"


def run(dataset: str, data: Path, seeds: list[int], rows: list[str]) -> None:
    where = f"data.root={data}" if dataset == "fashion" else f"data.name={unpack(data)}"
    recipe = f"recipes/first-light-{'fashion' if dataset == 'fashion' else 'cifar10'}.yaml"
    for seed in seeds:
        for row in rows or STUDIES[dataset]:
            folder = cell(dataset, row, seed)
            if (folder / "report.json").exists():
                continue
            command = [
                sys.executable, "-m", "metamixer", "train", recipe, where,
                f"train.seed={seed}", *STUDIES[dataset][row], "--out", str(folder), "--resume", "auto", "--quiet",
            ]  # fmt: skip
            print(" ".join(command), flush=True)
            if code := subprocess.run(command).returncode:
                sys.exit(code)


def table() -> None:
    for dataset, rows in STUDIES.items():
        print(f"\n{dataset}: test accuracy in %, last epoch, mean ± sd\n")
        print("| method | peer 0 | peer 1 | mean of peers | ensemble | NLL of peers | train accuracy | seeds |")
        print("|---|---|---|---|---|---|---|---|")
        for row in rows:
            found = [path for seed in range(10) if (path := cell(dataset, row, seed) / "report.json").exists()]
            reports = [json.loads(path.read_text())["last_epoch"] for path in found]
            if not reports:
                continue
            peers = [[peer["accuracy"] * 100 for peer in report["peers"]] for report in reports]
            last = [json.loads(path.with_name("metrics.jsonl").read_text().splitlines()[-1]) for path in found]
            columns = [
                [each[0] for each in peers],
                [each[1] for each in peers],
                [statistics.mean(each) for each in peers],
                [report["ensemble"]["accuracy"] * 100 for report in reports],
            ]
            nll = [statistics.mean(peer["nll"] for peer in report["peers"]) for report in reports]
            fitted = [statistics.mean(epoch["train_accuracy"]) * 100 for epoch in last]
            cells = [spread(column) for column in columns] + [spread(nll), spread(fitted)]
            print(f"| {row} | {' | '.join(cells)} | {len(reports)} |")


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("dataset", nargs="?", choices=list(STUDIES))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", help="of the table; all by default")
    given = parser.parse_args()
    if given.what == "table":
        table()
    elif given.dataset is None or given.data is None:
        parser.error("run needs a data set and --data")
    else:
        run(given.dataset, given.data, given.seeds, given.rows)
