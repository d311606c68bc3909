import re

import pytest

from metamixer.core.standard_sets import STANDARD

# Images and classes as their authors give them: training and test part together.
IMAGES = {
    "fashion-mini": 7_000,
    "mnist": 60_000 + 10_000,
    "fashion-mnist": 60_000 + 10_000,
    "kmnist": 60_000 + 10_000,
    "cifar10": 50_000 + 10_000,
    "cifar100": 50_000 + 10_000,
    "svhn": 73_257 + 26_032,
    "stl10": 5_000 + 8_000,
}


@pytest.mark.parametrize("name", STANDARD)
def test_summaries_give_the_number_of_images(name):
    assert int(re.match(r"[\d,]+", STANDARD[name].summary)[0].replace(",", "")) == IMAGES[name]


@pytest.mark.parametrize("name", [name for name, each in STANDARD.items() if each.origin])
def test_torchvision_has_them(name):
    from torchvision import datasets

    origin = getattr(datasets, STANDARD[name].origin)
    assert issubclass(origin, datasets.VisionDataset)
    named = re.search(r"(\d+) classes", STANDARD[name].summary)
    if named and hasattr(origin, "classes"):
        assert len(origin.classes) == int(named[1])


def test_only_what_is_written_loses_its_class_in_a_mirror():
    assert [name for name, each in STANDARD.items() if not each.mirror] == ["mnist", "kmnist", "svhn"]
