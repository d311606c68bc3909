import pytest
import torch
from torch.nn import functional as F

from metamixer.models import MODELS, build
from metamixer.models.resnet import BasicBlock, Subsample

# He et al., arXiv 1512.03385, table 6: CIFAR-10, option A.
HE = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}
# The sizes printed in the distillation literature: CIFAR-100, option B.
CRD = {"resnet20": 0.28, "resnet32": 0.47, "resnet56": 0.86, "resnet110": 1.74, "resnet8x4": 1.23, "resnet32x4": 7.43}


def count(network):
    return sum(p.numel() for p in network.parameters())


def resnet_size(depth, widths, shortcut, classes, channels=3):
    """Counted by hand: weights k*k*in*out, two numbers per channel of a norm, and the linear layer."""
    stem, *stages = widths
    size = 9 * channels * stem + 2 * stem
    c_in = stem
    for i, c in enumerate(stages):
        for block in range((depth - 2) // 6):
            size += 9 * c_in * c + 2 * c + 9 * c * c + 2 * c
            if shortcut == "B" and (c_in != c or (block == 0 and i > 0)):
                size += c_in * c + 2 * c
            c_in = c
    return size + c_in * classes + classes


@pytest.mark.parametrize("name", HE)
def test_option_a_has_the_sizes_of_he(name):
    size = count(build(name, num_classes=10, shortcut="A")) / 1e6
    assert round(size, 1 if name == "resnet110" else 2) == HE[name]


@pytest.mark.parametrize("name", CRD)
def test_default_sizes_of_the_distillation_literature(name):
    assert round(count(build(name, num_classes=100)) / 1e6, 2) == CRD[name]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("resnet")])
def test_resnet_size_by_hand(name, shortcut):
    depth = int(name.removeprefix("resnet").removesuffix("x4"))
    widths = (32, 64, 128, 256) if name.endswith("x4") else (16, 16, 32, 64)
    network = build(name, num_classes=7, in_channels=2, shortcut=shortcut)
    assert count(network) == resnet_size(depth, widths, shortcut, classes=7, channels=2)


@pytest.mark.parametrize("name", ["resnet8", "resnet8x4"])
def test_option_a_runs_at_odd_sizes_and_has_no_shortcut_weights(name):
    network = build(name, num_classes=3, shortcut="A")
    assert network(torch.randn(2, 3, 27, 29)).shape == (2, 3)
    assert not [key for key, _ in network.named_parameters() if "shortcut" in key]


def test_option_a_subsamples_and_fills_with_zeros():
    x = torch.randn(2, 3, 5, 4)
    expected = torch.zeros(2, 6, 3, 2)
    for i in range(3):
        for j in range(2):
            expected[:, :3, i, j] = x[:, :, 2 * i, 2 * j]
    assert torch.equal(Subsample(3, 6, 2)(x), expected)


@pytest.mark.parametrize(("c_out", "stride", "shortcut"), [(3, 1, "B"), (5, 2, "B"), (5, 2, "A")])
def test_a_block_from_its_weights(c_out, stride, shortcut):
    """In training mode, where a batch norm that is new only standardises each channel."""
    block = BasicBlock(3, c_out, stride, shortcut).double()
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64)
    weights = dict(block.named_parameters())

    def norm(y):
        return (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()

    beside = x
    if shortcut == "A":
        beside = Subsample(3, c_out, stride)(x)
    elif stride == 2:
        beside = norm(F.conv2d(x, weights["shortcut.0.weight"], stride=2))
    inner = norm(F.conv2d(x, weights["conv1.weight"], stride=stride, padding=1)).clamp(min=0)
    wanted = (norm(F.conv2d(inner, weights["conv2.weight"], padding=1)) + beside).clamp(min=0)
    torch.testing.assert_close(block(x), wanted)


@pytest.mark.parametrize("depth", [2, 9, 21])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(ValueError, match=f"of depth {depth} does not exist; "):
        build("resnet20", num_classes=2, depth=depth)


def test_shortcut_that_does_not_exist():
    with pytest.raises(ValueError, match="'C' is not a shortcut; 'A'"):
        build("resnet8", num_classes=2, shortcut="C")
