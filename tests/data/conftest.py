"""What the tests of the data side share."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets that are not part of the repository."""
    folder = Path(os.environ.get("METAMIXER_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no shared data: METAMIXER_SHARED_DATA names no folder")
    return folder


@pytest.fixture(scope="session")
def cifar_folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty files of each class of the JPEG copy of CIFAR-10: 14 to train on, 6 to test on."""
    archive = shared_data / "cifar10-jpeg.tar.gz"
    if not archive.is_file():
        pytest.skip(f"{archive.name} is not in the shared data")
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    names = {
        f"{part}/{name}/{number:04d}.jpg"
        for part, count in (("train", 14), ("test", 6))
        for name in classes
        for number in range(count)
    }
    root = tmp_path_factory.mktemp("cifar")
    with tarfile.open(archive) as members:
        for member in members:  # read by fixed names; nothing in the archive decides where anything is written
            if member.name in names and (file := members.extractfile(member)) is not None:
                (root / member.name).parent.mkdir(parents=True, exist_ok=True)
                (root / member.name).write_bytes(file.read())
                names.remove(member.name)
                if not names:
                    break
    return root


@pytest.fixture
def save():
    """Writes an image of noise, or of the given pixels, and gives its path back."""

    def write(path: Path, size=(8, 8), mode="RGB", seed=0, pixels=None, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            pixels = np.random.default_rng(seed).integers(0, 256, (*size, *(() if mode == "L" else (3,))), np.uint8)
        Image.fromarray(pixels).save(path, **options)
        return path

    return write


@pytest.fixture
def class_folders(tmp_path: Path, save):
    """Makes ``tmp_path/data[/part]/CLASS/i.png``, every image different."""

    def make(classes=("cat", "dog"), count=5, part="", size=(8, 8), mode="RGB", root=None, first=0) -> Path:
        root = root or tmp_path / "data"
        for label, name in enumerate(classes):
            for number in range(count):
                seed = first + 1000 * label + number
                save(root / part / name / f"{number}.png", size=size, mode=mode, seed=seed)
        return root

    return make
