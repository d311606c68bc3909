"""Files of weights: what fits is read, and what does not is said on one short line."""

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from metamixer.config.weights import head_of, load_weights
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


def test_a_head_of_other_classes_stays_new(tmp_path):
    saved, read = network(5), network(10, seed=1)
    save_file(saved.state_dict(), tmp_path / "x.safetensors")
    before = {key: value.clone() for key, value in read.state_dict().items()}
    head = head_of(read, network(11))
    assert head == {"classifier.weight": 0, "classifier.bias": 0}
    assert load_weights(read, tmp_path / "x.safetensors", head) == ["classifier.weight", "classifier.bias"]
    for key, value in read.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("classifier.") else saved.state_dict()[key])


def test_a_head_that_is_missing_or_not_wanted_stays_new(tmp_path):
    saved = network(seed=2).state_dict()
    save_file(saved, tmp_path / "whole.safetensors")
    save_file(
        {key: value for key, value in saved.items() if not key.startswith("classifier.")}, tmp_path / "body.safetensors"
    )
    head = head_of(network(), network(11))
    for name, how in (("body", {}), ("whole", {"new_head": True})):
        read = network(seed=1)
        before = read.classifier.weight.clone()
        assert load_weights(read, tmp_path / f"{name}.safetensors", lambda: head, **how) == [
            "classifier.weight",
            "classifier.bias",
        ]
        assert torch.equal(read.classifier.weight, before)
        assert torch.equal(read.stage1[0].conv1.weight, saved["stage1.0.conv1.weight"])
    with pytest.raises(ValueError, match=r"2 tensors missing: classifier\.weight, classifier\.bias"):
        load_weights(network(), tmp_path / "body.safetensors")


def test_outputs_are_put_into_another_order(tmp_path):
    saved, read = network(4), network(3, seed=1)
    save_file(saved.state_dict(), tmp_path / "x.safetensors")
    assert load_weights(read, tmp_path / "x.safetensors", head_of(read, network(4)), [3, 0, 2]) == []
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(read.eval()(images), saved.eval()(images)[:, [3, 0, 2]])


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_nothing_else_may_be_missing_beside_another_head(change, tmp_path):
    found = dict(network(5).state_dict())
    if change == "missing":
        del found["stage2.0.conv1.weight"]
    elif change == "unknown":
        found["stage9.weight"] = torch.zeros(3)
    else:
        found["stage2.0.conv1.weight"] = found["stage2.0.conv1.weight"][:, :2].contiguous()
    save_file(found, tmp_path / "x.safetensors")
    read = network()
    with pytest.raises(ValueError, match=r"another network: 1 tensors .*: stage[29]") as caught:
        load_weights(read, tmp_path / "x.safetensors", head_of(read, network(11)))
    assert "classifier." not in str(caught.value)


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
