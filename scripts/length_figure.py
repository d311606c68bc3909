"""Draw docs/images/length.png: accuracy and likelihood against the length of training, from the rows of a study.

python scripts/length_figure.py [studies/budget]
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
from matplotlib import pyplot as plt

from metamixer.studies.plan import Plan
from metamixer.studies.study_file import Study

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]


def main(folder: Path) -> None:
    study = Study.read(folder / "study.yaml")
    found: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for result in Plan.of(study, folder).lines.values():
        found[result.row["mixers"], result.epochs].append(result.metrics)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), dpi=110)
    for axis, (metric, factor, name) in zip(
        axes,
        [("accuracy", 100, "test accuracy, mean of peers (%)"), ("nll", 1, "test NLL, mean of peers")],
        strict=True,
    ):
        for mixer in study.content.axis("mixers"):
            points = sorted((epochs, each) for (which, epochs), each in found.items() if which == mixer)
            values = [[factor * one[metric] for one in each] for _, each in points]
            error = [stdev(each) if len(each) > 1 else 0.0 for each in values]
            axis.errorbar(
                [epochs for epochs, _ in points], [*map(fmean, values)], error, marker="o", capsize=3, label=mixer
            )
        axis.set_xscale("log", base=2)
        ticks = sorted({epochs for _, epochs in found})
        axis.set_xticks(ticks, map(str, ticks))
        axis.set_xlabel("epochs")
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(ROOT / "docs/images/length.png")


if __name__ == "__main__":
    main(ROOT / (sys.argv[1] if len(sys.argv) > 1 else "studies/budget"))
