"""A folder of images becomes one small network in one file, ready to use: train, deploy, predict.

    python examples/engineer.py photos/ new_photo.jpg --epochs 100

The folder holds one folder for each class (photos/cat/1.jpg ...), or train/, val/ and test/ with such folders.
The same from the shell, where everything can be set as well:

    metamixer train --data photos/ --peers timm:resnet18,timm:mobilenetv3_small_100 --epochs 100 --out runs/photos
    metamixer predict runs/photos new_photo.jpg
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from metamixer.config.recipe import Recipe
from metamixer.runs.classifier import Classifier
from metamixer.runs.run import Result, load_data, train


def fit(photos: Path, out: Path, peers: Sequence[str], epochs: int) -> Result:
    """Train; the deployed network is chosen on validation images, the metrics are those of the test images."""
    # In a short training full-strength mixing costs accuracy (docs/results.md), so it is mild below 100 epochs and
    # stops half-way: the last epochs are on the images as they are.
    mild = {"local_probability": 0.3, "global_probability": 0.3, "until": 0.5} if epochs < 100 else {}
    recipe = Recipe.of(
        {
            "data": {"name": str(photos.resolve())},
            "peers": list(peers),
            "mixer": {"name": "metamixer", **mild},
            "loss": {"name": "dml"},
            "train": {"epochs": epochs, "batch_size": 32},
        }
    )
    data = load_data(recipe)
    print(f"{len(data.train)} training images of {len(data.classes)} classes, {data.size[0]} x {data.size[1]} pixels")
    for note in data.notes:
        print(note)
    # Resuming makes the script safe to start again: it resumes where it was stopped.
    return train(recipe, out, data=data, resume=True)


def main(words: Sequence[str] | None = None) -> tuple[float, str]:
    """Train on a folder, and give the deployed network's accuracy and what it says about one new image."""
    parser = argparse.ArgumentParser(description="train on a folder of images, then name the class of one image")
    parser.add_argument("photos", type=Path, help="one folder for each class")
    parser.add_argument("image", type=Path, help="a new image, to be classified")
    parser.add_argument("--peers", default="timm:resnet18,timm:mobilenetv3_small_100", help="networks that learn")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/engineer"), help="the run's folder")
    chosen = parser.parse_args(words)

    result = fit(chosen.photos, chosen.out, chosen.peers.split(","), chosen.epochs)
    for score in result.last.rows:
        print(f"{score.name:24s} {score.accuracy:6.1%} of {result.last.images} {result.split} images")

    # From here on the one file is enough: it can be copied to where the images are.
    classifier = Classifier.load(result.model)
    print(
        f"{result.deployed.name} is deployed: {result.deployed.accuracy:.1%}; chance: {1 / len(classifier.classes):.1%}"
    )
    (probabilities,) = classifier.predict([chosen.image])
    best = int(probabilities.argmax())
    print(f"{chosen.image}: {classifier.classes[best]} ({float(probabilities[best]):.1%})")
    return result.deployed.accuracy, classifier.classes[best]


if __name__ == "__main__":
    main()
