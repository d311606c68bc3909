"""Where networks of many kinds keep their channels: known by their widths, and by what a patch of the image moves."""

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.cohort.stages import find_stages
from metamixer.core.layout import Layout, channels_first, stage_layouts
from metamixer.core.types import Outputs
from metamixer.losses import AFD, AMLN, FFL, LMCL, ONE
from metamixer.models import resnet8

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

# name, options, the side of the images, and of each stage the channels and the grid
NETWORKS = [
    ("resnet18", {}, 64, [(64, 16), (128, 8), (256, 4), (512, 2)]),
    ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32, [(192, 4)] * 4),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 64, [(192, 4)] * 4),
    ("xcit_nano_12_p16_224", {"img_size": 64}, 64, [(128, 4)] * 4),  # its class token comes after these blocks
    ("mixer_s32_224", {"img_size": 64}, 64, [(512, 2)] * 4),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4},
        64,
        [(96, 16), (192, 8), (384, 4), (768, 2)],
    ),
    ("convnext_atto", {}, 64, [(40, 16), (80, 8), (160, 4), (320, 2)]),
    ("pvt_v2_b0", {}, 64, [(32, 16), (64, 8), (160, 4), (256, 2)]),
]
VISION = [
    ("swin_t", 64, [(96, 16), (192, 8), (384, 4), (768, 2)]),
    ("convnext_tiny", 64, [(96, 16), (192, 8), (384, 4), (768, 2)]),
]


def stage_maps(network, images):
    paths = find_stages(network)
    found = {}
    handles = [
        network.get_submodule(path).register_forward_hook(lambda _, __, out, path=path: found.__setitem__(path, out))
        for path in paths
    ]
    with torch.no_grad():
        network.eval()(images)
    for handle in handles:
        handle.remove()
    layouts = stage_layouts(network, images, paths)
    return [channels_first(found[path], layout, images.shape[2:]) for path, layout in zip(paths, layouts, strict=True)]


@pytest.mark.parametrize(("name", "options", "side", "wanted"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_networks_of_timm(name, options, side, wanted):
    network = timm.create_model(name, num_classes=5, **options)
    maps = stage_maps(network, torch.randn(2, 3, side, side))
    assert [tuple(each.shape) for each in maps] == [(2, channels, grid, grid) for channels, grid in wanted]


@pytest.mark.parametrize(("name", "side", "wanted"), VISION, ids=[row[0] for row in VISION])
def test_networks_of_torchvision(name, side, wanted):
    maps = stage_maps(getattr(torchvision.models, name)(num_classes=5), torch.randn(2, 3, side, side))
    assert [tuple(each.shape) for each in maps] == [(2, channels, grid, grid) for channels, grid in wanted]


def test_tokens_lie_where_their_patch_is():
    """In a ViT without attention and embedding a token sees its own patch alone."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=(32, 48), patch_size=8, depth=4)
    for block in vit.blocks:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)
    images = torch.zeros(1, 3, 32, 48)
    marked = images.clone()
    marked[:, :, 8:16, 40:48] = 1  # the patch in row 1 and column 5
    before, after = stage_maps(vit, images)[-1], stage_maps(vit, marked)[-1]
    assert before.shape == (1, 192, 4, 6)
    assert (before - after).abs().sum((0, 1)).nonzero().tolist() == [[1, 5]]


def test_equal_sizes_are_settled_by_the_layer():
    """As many tokens as channels: only the kind of the layer distinguishes them."""
    tokens = nn.Sequential(nn.Sequential(nn.Conv1d(2, 8, 1)), nn.Flatten(), nn.Linear(64, 3))
    assert stage_layouts(tokens, torch.randn(2, 2, 8), ["0"]) == (Layout(1),)
    linear = nn.Sequential(nn.Sequential(nn.Linear(2, 8), nn.LayerNorm(8)), nn.Flatten(), nn.Linear(64, 3))
    assert stage_layouts(linear, torch.randn(2, 8, 2), ["0"]) == (Layout(2),)


def test_modes_statistics_and_hooks_stay():
    network = resnet8(num_classes=5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.randn(2, 3, 16, 16)
    state = torch.get_rng_state()
    stage_layouts(network, images, ["stage1"])
    assert all(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def vit():
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, patch_size=8, depth=4, embed_dim=24)


def swin():
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, img_size=32, window_size=4, embed_dim=24)


def by_hand(outputs):
    """The same outputs, their stages moved without the code under test."""

    def moved(stage):
        if stage.ndim == 4:
            return stage.permute(0, 3, 1, 2)
        return stage[:, 1:].transpose(1, 2).reshape(len(stage), -1, 4, 4)

    stages = tuple(tuple(map(moved, own)) for own in outputs.stages)
    return Outputs(outputs.logits, stages, outputs.features, outputs.frozen, shared=outputs.shared)


@pytest.mark.parametrize("make", [vit, swin])
@pytest.mark.parametrize("loss", [FFL, AFD, AMLN, LMCL, ONE])
def test_losses_compare_channels_of_transformers(make, loss):
    torch.manual_seed(0)
    networks = [make() for _ in range(2)]
    if loss is ONE:
        share_trunk(networks, "blocks.1" if make is vit else "layers.1")
    outputs = Cohort(networks).eval()(torch.randn(4, 3, 32, 32))
    made, targets = loss(), torch.eye(5)[[0, 1, 0, 1]]
    made.setup(outputs)
    found, wanted = made(outputs, targets), made(by_hand(outputs), targets)
    for name, term in wanted.items():
        torch.testing.assert_close(found[name], term)
    assert wanted["task"].isfinite().all()


def test_a_convolutional_network_and_a_transformer_are_fused():
    """A ViT's tokens are a map of the image like any other."""
    torch.manual_seed(0)
    outputs = Cohort([vit(), resnet8(num_classes=5)])(torch.randn(4, 3, 32, 32))
    loss = FFL()
    loss.setup(outputs)
    sum(term.sum() for term in loss(outputs, torch.eye(5)[[0, 1, 2, 3]]).values()).backward()
    assert loss.fusion.shape[0] == (24, 64)
