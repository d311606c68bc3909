"""Make the small data sets of studies/ from public archives: folders of images, the same on every machine.

    python scripts/study_data.py ARCHIVES --out study-data

ARCHIVES holds `cifar10-jpeg.tar.gz` (CIFAR-10 as JPEG files), `cifar100-200.tar.xz` (200 training images of each class
of CIFAR-100), `tiny-imagenet-20.tar.xz` (20 classes with boxes), `cifar10n-labels.csv.gz` (labels by people) and
`fashion-mnist/` (the four idx files). What is not there is left out.

`cifar10-explore`, `fashion-explore` and `photographs` have no image of the test sets: their `test/` are other training
images, so that what is chosen there is chosen without test images. The other sets have the official test images.
"""

import argparse
import csv
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

# split, class and number of a file of an archive -> the split of a set that it goes to
Choice = Callable[[str, str, int], str | None]


def between(**ranges: tuple[int, int]) -> Choice:
    """Training files by number; `test=(0, 0)` takes the archive's own test split."""

    def choose(split: str, name: str, number: int) -> str | None:
        if split == "test":
            return "test" if ranges.get("test") == (0, 0) else None
        return next((part for part, (low, high) in ranges.items() if low <= number < high), None)

    return choose


def unequal(**sizes: int) -> Choice:
    """The first images of some classes, as many as `sizes` says; 20 others of each validate, 200 others as `test`."""
    choices = {name: between(train=(0, size), test=(200, 400), val=(400, 420)) for name, size in sizes.items()}
    return lambda split, name, number: choices[name](split, name, number) if name in choices else None


OFFICIAL = (0, 0)
PHOTOGRAPHS = {"acorn": 30, "bee": 45, "dragonfly": 60, "hourglass": 80, "king_penguin": 100}
PHOTOGRAPHS |= {"monarch": 120, "orange": 140, "snail": 160, "sports_car": 180, "tractor": 200}
SETS: dict[str, dict[str, Choice]] = {
    "cifar10-jpeg.tar.gz": {
        "cifar10-explore": between(train=(0, 50), val=(50, 100), test=(100, 600)),
        "cifar10-500": between(train=(0, 50), val=(50, 100), test=OFFICIAL),
        "cifar10n-2000": between(train=(0, 200), val=(200, 250), test=OFFICIAL),
    },
    "cifar100-200.tar.xz": {"cifar100-20": between(train=(0, 20), val=(20, 30), test=OFFICIAL)},
    "tiny-imagenet-20.tar.xz": {
        "tiny-50": between(train=(0, 50), val=(400, 450), test=OFFICIAL),
        "tiny-100": between(train=(0, 100), val=(400, 450), test=OFFICIAL),
        "photographs": unequal(**PHOTOGRAPHS),
    },
}


def images(archive: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Split, class, file name and content of every image; members are read by name, none is extracted."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts[-3:]
            if member.isfile() and len(parts) == 3 and parts[0] in ("train", "test"):
                content = tar.extractfile(member)
                assert content is not None
                yield *parts, content.read()


def unpack(archive: Path, out: Path) -> None:
    for split, name, file, content in images(archive):
        for made, choose in SETS[archive.name].items():
            # Tiny ImageNet's and CIFAR's files are numbered inside of their class.
            digits = "".join(filter(str.isdigit, Path(file).stem))
            if (to := choose(split, name, int(digits or 0))) is not None:
                folder = out / made / to / name
                folder.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)


def boxes(archive: Path, out: Path) -> None:
    """The boxes of Tiny ImageNet beside the splits that they belong to; `file` is relative to its split."""
    with tarfile.open(archive) as tar:
        for member in tar:
            origin = Path(member.name).name.removesuffix("_boxes.csv")
            if origin in ("train", "test") and member.name.endswith("_boxes.csv"):
                content = tar.extractfile(member)
                assert content is not None
                rows = list(csv.DictReader(io.TextIOWrapper(content, "utf-8")))
                for made in SETS[archive.name]:
                    for split in ("train", "val") if origin == "train" else ("test",):
                        if not (kept := [row for row in rows if (out / made / split / row["file"]).is_file()]):
                            continue  # its test images come from the training images
                        with (out / made / f"{split}_boxes.csv").open("w", newline="") as file:
                            writer = csv.DictWriter(file, rows[0])
                            writer.writeheader()
                            writer.writerows(kept)


def labels(archive: Path, folder: Path) -> None:
    """Labels by people of the training images; validation and test images keep the clean ones."""
    with gzip.open(archive, "rt") as file:
        rows = [row for row in csv.DictReader(file) if (folder / row["file"]).is_file()]
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


FASHION = {
    "fashion-500": {"train": [("train", 50), ("val", 50)], "t10k": [("test", 10_000)]},
    "fashion-explore": {"train": [("train", 54), ("val", 50), ("test", 500)]},
}
"""Images of each class from each file, in their order, and the splits that they go to."""


def fashion(source: Path, out: Path) -> None:
    for name, parts in FASHION.items():
        for kind, splits in parts.items():
            fashion_splits(source, kind, out / name, splits)


def fashion_splits(source: Path, kind: str, folder: Path, parts: list[tuple[str, int]]) -> None:
    names = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"]
    raw = gzip.decompress((source / f"{kind}-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(raw, np.uint8, -1, 16)
    raw = gzip.decompress((source / f"{kind}-labels-idx1-ubyte.gz").read_bytes())
    classes = np.frombuffer(raw, np.uint8, -1, 8)
    for label, name in enumerate(names):
        chosen = iter(np.flatnonzero(classes == label))
        for split, count in parts:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for index, _ in zip(chosen, range(count), strict=False):
                Image.fromarray(pixels.reshape(-1, 28, 28)[index]).save(folder / split / name / f"{index:05}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", type=Path)
    parser.add_argument("--out", type=Path, default=Path("study-data"))
    arguments = parser.parse_args()
    for name in SETS:
        if (archive := arguments.archives / name).is_file():
            unpack(archive, arguments.out)
            if name.startswith("tiny"):
                boxes(archive, arguments.out)
    if (file := arguments.archives / "cifar10n-labels.csv.gz").is_file():
        labels(file, arguments.out / "cifar10n-2000")
    if (folder := arguments.archives / "fashion-mnist").is_dir():
        fashion(folder, arguments.out)


if __name__ == "__main__":
    main()
