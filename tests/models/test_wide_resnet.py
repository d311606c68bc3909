import pytest
import torch

from metamixer.models import build

# The sizes printed in the distillation literature: CIFAR-100.
CRD = {"wrn_16_1": 0.18, "wrn_16_2": 0.70, "wrn_40_1": 0.57, "wrn_40_2": 2.26}


def count(network):
    return sum(p.numel() for p in network.parameters())


def wrn_size(depth, width, classes):
    size, c_in = 9 * 3 * 16, 16
    for c in (16 * width, 32 * width, 64 * width):
        for _ in range((depth - 4) // 6):
            size += 2 * c_in + 9 * c_in * c + 2 * c + 9 * c * c + (c_in * c if c_in != c else 0)
            c_in = c
    return size + 2 * c_in + c_in * classes + classes


@pytest.mark.parametrize("name", CRD)
def test_default_sizes_of_the_distillation_literature(name):
    assert round(count(build(name, num_classes=100)) / 1e6, 2) == CRD[name]


@pytest.mark.parametrize(("depth", "width"), [(16, 1), (16, 2), (40, 1), (40, 2)])
def test_wrn_size_by_hand(depth, width):
    assert count(build(f"wrn_{depth}_{width}", num_classes=100)) == wrn_size(depth, width, 100)


def test_wrn_is_pre_activated():
    network = build("wrn_16_1", num_classes=10).eval()
    seen = {}
    for path in ("stage1", "stage2", "stage3", "final"):
        network.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: seen.update({path: o}))
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 32, 32))
    assert seen["stage1"].min() < 0
    assert seen["stage3"].min() < 0
    assert seen["final"].min() == 0
    torch.testing.assert_close(network.classifier(seen["final"].mean((2, 3))), logits)


def test_dropout_stands_between_the_convolutions_of_a_block():
    network = build("wrn_16_1", num_classes=10, dropout=1.0).double()
    seen = []
    network.stage1[1].register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    network(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    ((into, out),) = seen
    assert torch.equal(out, into)  # with nothing left of the residual, only the shortcut


@pytest.mark.parametrize("depth", [4, 15, 17])
def test_depths_that_do_not_exist(depth):
    with pytest.raises(ValueError, match=f"of depth {depth} does not exist; "):
        build("wrn_16_1", num_classes=2, depth=depth)
