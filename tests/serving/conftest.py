"""A run on photographs whose classes have names that try to break out, and its server."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from metamixer.config.recipe import Recipe
from metamixer.runs.run import train

CLASSES = ["<img src=x onerror=alert(1)>", "$x$ [red] \"'&", "näh 猫"]


def photo(path, seed, size=(40, 30), exif=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    more = {} if exif is None else {"exif": exif}
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path, **more)
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """Two architectures on three classes."""
    root = tmp_path_factory.mktemp("serving")
    for label, name in enumerate(CLASSES):
        (root / "photos" / name).mkdir(parents=True)
        for number in range(10):
            photo(root / "photos" / name / f"{number}.jpg", 10 * label + number)
    changes = [f"data.name={root / 'photos'}", "data.image_size=24x32", "mixer=none", "train.epochs=1"]
    changes += ["train.batch_size=8", "train.accelerator=cpu"]
    train(Recipe.of({"peers": ["resnet8", "resnet14"]}, changes), root / "run")
    return root / "run"


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Photographs of several sizes; the first one lies on its side."""
    folder = tmp_path_factory.mktemp("images")
    turned = Image.Exif()
    turned[0x0112] = 6
    found = [photo(folder / "turned.jpg", 100, (50, 20), turned)]
    return found + [photo(folder / f"{number}.png", 100 + number, (20 + number, 30)) for number in range(1, 8)]


@contextmanager
def serving(*words):
    """The command in a process of its own, and the address that it prints."""
    words = [sys.executable, "-m", "metamixer", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=environment)
    try:
        line = process.stdout.readline()
        assert "http://" in line, process.stderr.read()
        process.address = "http://" + line.partition("http://")[2].split()[0]
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="session")
def server(run):
    """The run's server; images of 2 MB at most."""
    with serving(run, "--max-megabytes", "2") as process:
        yield process
