"""The weights below a stage, found by autograd, against lists that were written by hand."""

import pytest
import torch
from torch import nn

from metamixer import Cohort
from metamixer.cohort.first_stages import first_stages
from metamixer.cohort.stages import find_stages
from metamixer.models import build

IMAGES = torch.zeros(2, 3, 32, 32)


def names(network, count, images=IMAGES, paths=None):
    found = first_stages(network, count, images, paths)
    ids = {id(weight) for weight in found.parameters}
    modules = {id(module) for module in found.norms}
    return (
        [name for name, weight in network.named_parameters() if id(weight) in ids],
        [name for name, module in network.named_modules() if id(module) in modules],
    )


@pytest.mark.parametrize(
    ("name", "stem", "stages"),
    [
        ("resnet8", ("stem",), [("stage1",), ("stage2",), ("stage3",)]),
        ("wrn_16_2", ("stem",), [("stage1",), ("stage2",)]),
        ("timm:test_resnet", ("conv1", "bn1"), [("layer1",), ("layer2",), ("layer3",), ("layer4",)]),
        ("torchvision:resnet18", ("conv1", "bn1"), [("layer1",), ("layer2",)]),
        ("timm:test_convnext", ("stem",), [("stages.0",), ("stages.1",)]),
    ],
)
def test_stem_and_stages_are_those_of_the_architecture(name, stem, stages):
    network = build(name, num_classes=4)
    for count in range(len(stages) + 1):
        below = (*stem, *(part for stage in stages[:count] for part in stage))
        found, norms = names(network, count)
        assert found == [key for key, _ in network.named_parameters() if key.startswith(tuple(f"{p}." for p in below))]
        inside = tuple(f"{part}." for part in below)
        assert norms == [
            key for key, module in network.named_modules()
            if isinstance(module, nn.BatchNorm2d) and (f"{key}.").startswith(inside)
        ]  # fmt: skip


def test_tokens_and_position_embeddings_are_below_the_first_block():
    network = build("timm:test_vit", num_classes=4, image_size=(32, 32))
    stem, _ = names(network, 0)
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(stem)
    assert not any(key.startswith("blocks.") for key in stem)
    last = find_stages(network)
    whole, _ = names(network, len(last))
    assert not any(key.startswith(("head", "norm.", "fc_norm")) for key in whole)
    assert {key for key, _ in network.named_parameters() if key.startswith("blocks.")} <= set(whole)


class Disordered(nn.Module):
    """Its modules are written in another order than they run in, and a branch beside the stage runs first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.late = nn.Conv2d(4, 4, 1)
        self.early = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.beside = nn.Conv2d(3, 4, 1)

    def forward(self, images):
        beside = self.beside(images)
        return self.head((self.late(self.early(images)) + beside).mean((2, 3)))


def test_the_order_in_which_modules_are_written_means_nothing():
    found, norms = names(Disordered(), 1, paths=["early", "late"])
    assert found == ["early.0.weight", "early.0.bias", "early.1.weight", "early.1.bias"]
    assert norms == ["early.1"]


def test_stages_that_do_not_exist():
    with pytest.raises(ValueError, match="ResNet has 3 stages, not 4: stage1, stage2, stage3"):
        first_stages(build("resnet8", num_classes=4), 4, IMAGES)
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 900, 2))
    with pytest.raises(ValueError, match="no weights before its first stage"):
        first_stages(chain, 0, IMAGES, ["1"])


def test_probing_changes_nothing():
    network = build("resnet8", num_classes=4).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    state = torch.get_rng_state()
    first_stages(network, 2, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    assert all(weight.grad is None for weight in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_what_a_cohort_holds_stays_in_evaluation_mode_until_it_is_released():
    cohort = Cohort([build("resnet8", num_classes=4), build("resnet8", num_classes=4)])
    part = first_stages(cohort.peers[0], 1, IMAGES)
    assert cohort.hold(0, part)
    assert not cohort.hold(0, part)
    cohort.train()
    assert not any(weight.requires_grad for weight in part.parameters)
    assert not any(norm.training for norm in part.norms)
    assert cohort.peers[0].stage2[0].norm1.training
    assert cohort.peers[1].stem[1].training
    assert cohort.hold(0, None)
    assert all(weight.requires_grad for weight in cohort.peers[0].parameters())
    assert all(norm.training for norm in part.norms)
    assert not cohort.hold(0, None)
