"""Do peers that teach each other gain, and does MetaMixer add to it? Methods compared over seeds, in pairs.

    python examples/researcher.py --data cifar10 --root data --limit 50 --epochs 200 --seeds 0,1,2,3,4

The metric is the mean of the peers on the test images after the last epoch: no model selection on the test set.
Runs of one seed start from the same weights and see the same images in the same order. Differences are therefore taken
inside a seed: what all methods owe to a lucky start falls out, and the interval is narrower than that of two means.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from scipy.stats import t

from metamixer.config.recipe import Recipe
from metamixer.runs.run import load_data, train

# The first one is what the others are compared with.
METHODS = {
    "plain": {"loss": "independent", "mixer": "none"},
    "dml": {"loss": "dml", "mixer": "none"},
    "dml + metamixer": {"loss": "dml", "mixer": "metamixer"},
}


def compare(base: dict, methods: dict[str, dict], seeds: Sequence[int], out: Path) -> dict[str, list[float]]:
    """The accuracy in % of each method for each seed."""
    data = load_data(Recipe.of(base))  # once: the split depends on data.seed, which is the same in all runs
    found: dict[str, list[float]] = {}
    for name, parts in methods.items():
        for seed in seeds:
            recipe = Recipe.of({**base, **parts}, [f"train.seed={seed}"])
            # A folder by the recipe's checksum: another setting is another run, and a finished run is not done again.
            result = train(recipe, out / recipe.digest, data=data, resume=True)
            accuracy = 100 * mean(score.accuracy for score in result.last.peers)
            found.setdefault(name, []).append(accuracy)
            print(f"{name:18s} seed {seed}: {accuracy:.2f} %")
    return found


def table(found: dict[str, list[float]]) -> list[str]:
    """Mean and standard deviation over seeds, and the differences from the first method with their 95 % interval."""
    first, *_ = found
    lines = []
    for name, values in found.items():
        line = f"{name:18s} {mean(values):5.2f} ± {stdev(values):.2f} %"
        if name != first:
            gains = [value - other for value, other in zip(values, found[first], strict=True)]
            # Over seeds, not over images; with few of them it is wide, and two may agree by chance.
            half = t.ppf(0.975, len(gains) - 1) * stdev(gains) / len(gains) ** 0.5
            low, high = mean(gains) - half, mean(gains) + half
            line += f"   {mean(gains):+.2f} over {first} [{low:+.2f}, {high:+.2f}], {len(gains)} pairs"
        lines.append(line)
    return lines


def main(words: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run every method with every seed, print the table, and return the metrics."""
    parser = argparse.ArgumentParser(description="compare methods over seeds")
    parser.add_argument("--data", default="fashion-mini")
    parser.add_argument("--root", default="data", help="where standard sets lie")
    parser.add_argument("--limit", type=int, default=50, help="training images of each class")
    parser.add_argument("--size", type=int, default=None, help="side in pixels; left out: as the images are")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", default="0,1,2", help="two at least: one run says nothing about another")
    parser.add_argument("--mild", action="store_true", help="mix mildly, as short trainings need (docs/results.md)")
    parser.add_argument("--out", type=Path, default=Path("runs/researcher"))
    chosen = parser.parse_args(words)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    if len(seeds) < 2:
        parser.error("--seeds: two at least")
    base = {
        "data": {"name": chosen.data, "root": chosen.root, "train_limit": chosen.limit, "image_size": chosen.size},
        "peers": ["resnet8", "resnet8"],
        # Nothing is chosen by validation here, so that one at the end is enough.
        "train": {"epochs": chosen.epochs, "validate_every": chosen.epochs, "checkpoint_every": 10},
    }
    mild = {"name": "metamixer", "local_probability": 0.3, "global_probability": 0.3, "until": 0.5}
    methods = {**METHODS, "dml + metamixer": {"loss": "dml", "mixer": mild}} if chosen.mild else METHODS
    found = compare(base, methods, seeds, chosen.out)
    print(*table(found), sep="\n")
    return found


if __name__ == "__main__":
    main()
