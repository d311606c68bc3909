"""Files of weights: what fits is read, and what does not is said on one short line."""

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from metamixer.config.weights import load_weights
from metamixer.models import build


def network(classes=10, name="resnet8", seed=0):
    torch.manual_seed(seed)
    return build(name, num_classes=classes)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrapped_networks_fit(prefix, tmp_path):
    saved, read = network(), network(seed=1)
    save_file({prefix + key: value for key, value in saved.state_dict().items()}, tmp_path / "x.safetensors")
    load_weights(read, tmp_path / "x.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(saved.state_dict().values(), read.state_dict().values(), strict=True))


def test_a_network_that_has_such_a_module_itself(tmp_path):
    saved, read = (nn.ModuleDict({"module": nn.Linear(2, 3)}) for _ in range(2))
    save_file(saved.state_dict(), tmp_path / "x.safetensors")
    load_weights(read, tmp_path / "x.safetensors")
    assert torch.equal(saved["module"].weight, read["module"].weight)


def test_tensors_with_two_names_are_read(tmp_path):
    def tied():
        layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        layers[1].weight = layers[0].weight
        return layers

    saved, read = tied(), tied()
    save_model(saved, tmp_path / "x.safetensors")
    load_weights(read, tmp_path / "x.safetensors")
    assert torch.equal(saved[1].weight, read[0].weight)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (network(5), r"2 tensors of another shape: \S+ \(5, 64\) in the file, \(10, 64\) here, \S+ \(5,\)"),
        (network(name="vgg8"), r"\d+ tensors missing: \S+, \S+, \S+ and \d+ more; \d+ tensors unknown: "),
    ],
    ids=["another head", "another network"],
)
def test_another_network_is_one_short_line(saved, said, tmp_path):
    save_file(saved.state_dict(), tmp_path / "x.safetensors")
    read = network()
    before = {key: value.clone() for key, value in read.state_dict().items()}
    with pytest.raises(ValueError, match=said) as caught:
        load_weights(read, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
    assert all(torch.equal(before[key], value) for key, value in read.state_dict().items())
