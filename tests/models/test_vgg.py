from itertools import pairwise

import pytest
import torch

from metamixer.models import build

# The sizes printed in the distillation literature: CIFAR-100.
CRD = {"vgg8": 3.97, "vgg13": 9.46}


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", CRD)
def test_default_sizes_of_the_distillation_literature(name):
    assert round(count(build(name, num_classes=100)) / 1e6, 2) == CRD[name]


@pytest.mark.parametrize(("name", "convs"), [("vgg8", 1), ("vgg13", 2)])
def test_vgg_size_by_hand(name, convs):
    widths = [3, 64, 128, 256, 512, 512]
    size = 512 * 10 + 10
    for c_in, c in pairwise(widths):
        size += 9 * c_in * c + (convs - 1) * 9 * c * c + convs * 3 * c
    assert count(build(name, num_classes=10)) == size


def test_vgg_pools_a_fourth_time_from_64_pixels():
    network = build("vgg8", num_classes=2).eval()
    sizes = []
    network.stage5.register_forward_hook(lambda m, i, o: sizes.append(o.shape[-1]))
    with torch.no_grad():
        for size in (28, 32, 64):
            network(torch.zeros(1, 3, size, size))
    assert sizes == [3, 4, 4]


def test_the_classifier_starts_small_and_biases_at_zero():
    network = build("vgg8", num_classes=100)
    assert network.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(value.any() for name, value in network.named_parameters() if name.endswith("bias"))
