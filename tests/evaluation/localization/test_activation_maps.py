"""Maps: against captum, and against a network whose maps are known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metamixer import Cohort
from metamixer.cohort.stages import StagesNotFound
from metamixer.evaluation.localization.activation_maps import NoMap, activation_maps, map_stage, map_stages, raw_maps
from metamixer.models import resnet8


@pytest.fixture
def network():
    torch.manual_seed(0)
    return resnet8(num_classes=5, in_channels=1).double()


def images(count=3):
    return torch.randn(count, 1, 24, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_grad_cam_is_captums(network, stage):
    from captum.attr import LayerGradCam

    labels = torch.tensor([4, 0, 2])
    network.eval()
    layer = network.get_submodule(stage)
    expected = LayerGradCam(network, layer).attribute(images(), target=labels, relu_attributions=True)[:, 0].detach()
    found, logits = raw_maps(network, images(), labels, stage=stage)
    assert expected.max() > 0
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(logits, network(images()).detach())
    large, _ = activation_maps(network, images(), labels, stage=stage)
    grown = LayerGradCam.interpolate(expected[:, None], (24, 20), "bilinear")[:, 0]
    low, high = grown.amin((1, 2), keepdim=True), grown.amax((1, 2), keepdim=True)
    torch.testing.assert_close(large, ((grown - low) / (high - low).clamp_min(1e-300)))


def test_the_map_is_what_the_paper_says(network):
    """Slow loops over places and channels."""
    network.eval()
    one = images(1)
    held = []
    handle = network.stage2.register_forward_hook(lambda _, __, output: held.append(output))
    logit = network(one)[0, 3]
    handle.remove()
    (slope,) = torch.autograd.grad(logit, held[0])
    feature, slope = held[0][0].detach(), slope[0]
    C, H, W = feature.shape
    expected = torch.zeros(H, W).double()
    for c in range(C):
        weight = sum(float(slope[c, y, x]) for y in range(H) for x in range(W)) / (H * W)
        expected += weight * feature[c]
    assert expected.max() > 0
    found, _ = raw_maps(network, one, torch.tensor([3]), stage="stage2")
    torch.testing.assert_close(found[0], expected.clamp_min(0))


class Linear(nn.Module):
    """Classes are channels; the logit of a class is the mean of its channel."""

    stage_paths = ("features",)

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(2, 2, 1, bias=False)
        self.features.weight.data = torch.eye(2)[:, :, None, None]

    def forward(self, images):
        return self.features(images).mean((2, 3))


def test_a_known_map():
    """The map is the channel itself: rectified, at its own place."""
    pixels = torch.zeros(2, 2, 6, 8)
    pixels[:, 0, 1:3, 4:7], pixels[:, 1, 5, 0], pixels[:, 0, 0, 0] = 3.0, 2.0, -1.0
    maps, logits = activation_maps(Linear(), pixels, torch.tensor([0, 1]), stage="features")
    expected = torch.zeros(2, 6, 8)
    expected[0, 1:3, 4:7], expected[1, 5, 0] = 1.0, 1.0
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(logits, pixels.mean((2, 3)))
    named, _ = activation_maps(Linear(), pixels, stage="features")
    torch.testing.assert_close(named, expected[[0, 0]])


def test_nothing_to_see_is_a_map_of_zeros():
    maps, _ = activation_maps(Linear(), -torch.ones(1, 2, 4, 4), stage="features")
    assert torch.equal(maps, torch.zeros(1, 4, 4))


def test_images_do_not_depend_on_their_batch_and_networks_are_left_alone(network):
    network.train()
    network.stage1.eval()
    network.stage2.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    network.classifier.weight.grad = torch.ones_like(network.classifier.weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    grads = [None if weight.grad is None else weight.grad.clone() for weight in network.parameters()]
    with torch.no_grad():
        maps, _ = activation_maps(network, images(), stage="stage3")
    assert not maps.requires_grad
    assert maps.shape == (3, 24, 20)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for old, weight in zip(grads, network.parameters(), strict=True):
        assert weight.grad is old or torch.equal(weight.grad, old)
    assert not network.stage3._forward_hooks
    alone, _ = activation_maps(network, images()[1:2], stage="stage3")
    torch.testing.assert_close(alone[0], maps[1])
    assert maps.flatten(1).amax(1).tolist() == [1.0] * 3


def test_frozen_peers_of_a_cohort_have_maps():
    torch.manual_seed(0)
    cohort = Cohort([resnet8(num_classes=3, in_channels=1) for _ in range(2)], frozen=[1])
    pixels = torch.randn(2, 1, 16, 16)
    assert map_stages(cohort, pixels) == ("stage3", "stage3")
    maps, _ = activation_maps(cohort.peers[1], pixels, torch.tensor([0, 1]), stage="stage3")
    assert maps.max() == 1


class Pooled(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1),
                         nn.Flatten(), nn.Linear(4, 2))  # fmt: skip


def test_the_stage_is_the_last_that_has_an_extent():
    network = Pooled()
    assert map_stage(network, torch.zeros(1, 1, 8, 8), ("0", "3")) == "0"
    with pytest.raises(NoMap, match=r"3 \(1, 4, 1, 1\)"):
        map_stage(network, torch.zeros(1, 1, 8, 8), ("3",))
    with pytest.raises(StagesNotFound, match="'7' is not a module"):
        map_stage(network, torch.zeros(1, 1, 8, 8), ("7",))
    maps, _ = activation_maps(network, torch.rand(2, 1, 8, 8), stage="0")  # rectified in place
    assert maps.shape == (2, 8, 8)


def test_what_makes_no_map_is_reported():
    network = Pooled()
    with pytest.raises(NoMap, match=r"'4' returns \(2, 4\)"):
        raw_maps(network, torch.zeros(2, 1, 8, 8), stage="4")


def test_upsampling_is_bilinear():
    network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 1, bias=False))
    network[2].weight.data.fill_(1.0)
    pixels = torch.rand(1, 1, 8, 8)
    maps, _ = activation_maps(network, pixels, stage="0")
    grown = F.interpolate(F.avg_pool2d(pixels, 4), (8, 8), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(maps[0], (grown - grown.min()) / (grown.max() - grown.min()))


def vit(**settings):
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(
        img_size=(24, 16), patch_size=4, in_chans=1, embed_dim=12, depth=3, num_heads=2, num_classes=3, **settings
    ).double()


def swin():
    from timm.models.swin_transformer import SwinTransformer

    torch.manual_seed(0)
    return SwinTransformer(
        img_size=(24, 16), patch_size=2, in_chans=1, embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=2,
        num_classes=3,
    ).double()  # fmt: skip


def convnext():
    from timm.models.convnext import ConvNeXt

    torch.manual_seed(0)
    return ConvNeXt(in_chans=1, depths=(1,) * 4, dims=(4, 4, 8, 8), num_classes=3, output_stride=8).double()


@pytest.mark.parametrize(
    ("build", "stage", "place"),
    [
        # The class token stands before the patches, which lie row by row.
        (vit, "blocks.2.norm1", lambda held, y, x: held[1 + 4 * y + x]),
        (lambda: vit(class_token=False, global_pool="avg"), "blocks.2", lambda held, y, x: held[4 * y + x]),
        (lambda: vit(reg_tokens=1), "blocks.2.norm1", lambda held, y, x: held[2 + 4 * y + x]),
        (swin, "layers.1", lambda held, y, x: held[y, x]),
        (convnext, "stages.3", lambda held, y, x: held[:, y, x]),
    ],
    ids=["vit", "vit-avg", "vit-registers", "swin", "convnext"],
)
def test_transformers_have_maps(build, stage, place):
    """Slow loops over the places and channels of each layout."""
    network = build().eval()
    one = torch.randn(1, 1, 24, 16, dtype=torch.float64)
    held = []
    handle = network.get_submodule(stage).register_forward_hook(lambda _, __, output: held.append(output))
    logit = network(one)[0, 1]
    handle.remove()
    (slope,) = torch.autograd.grad(logit, held[0])
    feature, slope = held[0][0].detach(), slope[0]
    H, W = (3, 2) if build is convnext else (6, 4)
    cells = [(y, x) for y in range(H) for x in range(W)]
    expected = torch.zeros(H, W).double()
    for channel in range(len(place(feature, 0, 0))):
        weight = sum(float(place(slope, y, x)[channel]) for y, x in cells) / (H * W)
        for y, x in cells:
            expected[y, x] += weight * place(feature, y, x)[channel]
    assert map_stage(network, one) == stage
    found, _ = raw_maps(network, one, torch.tensor([1]), stage=stage)
    assert expected.max() > 0
    torch.testing.assert_close(found[0], expected.clamp_min(0))


def test_a_peer_without_a_map_says_why():
    cohort = Cohort([resnet8(num_classes=2, in_channels=1), Pooled()], stages=[["stage3"], ["3"]])
    found = map_stages(cohort, torch.zeros(1, 1, 8, 8))
    assert found[0] == "stage3"
    assert isinstance(found[1], NoMap)
