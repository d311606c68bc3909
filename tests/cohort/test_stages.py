import pytest
import torch
from torch import nn

from metamixer.cohort.stages import StagesNotFound, check_stages, find_stages
from metamixer.models import MODELS, build


def positions(x, channels_last):
    """The number of pixels or tokens of a feature map."""
    if x.ndim == 3:
        return x.shape[1]
    return x[0, ..., 0].numel() if channels_last else x[0, 0].numel()


def run(network, images, channels_last=False):
    """Hook the stages that are found, run once, and check what every network must show; the sizes come back."""
    paths = find_stages(network)
    assert check_stages(network, paths) == paths
    assert len(set(paths)) == len(paths) >= 1
    seen = []
    for path in paths:
        network.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: seen.append((path, o)))
    with torch.no_grad():
        network.eval()(images)
    assert [path for path, _ in seen] == list(paths)
    features = [o[0] if isinstance(o, tuple) else o for _, o in seen]
    assert all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in features)
    assert all(len(x) == len(images) and x.ndim >= 2 for x in features)
    sizes = [positions(x, channels_last) for x in features] if features[0].ndim > 2 else [1] * len(features)
    assert sizes == sorted(sizes, reverse=True)
    return paths, sizes


def numbered(prefix, *numbers):
    return tuple(f"{prefix}{number}" for number in numbers)


@pytest.mark.parametrize("name", MODELS)
def test_bundled(name):
    network = build(name, num_classes=3)
    paths, sizes = run(network, torch.zeros(2, 3, 16, 16))
    assert paths == network.stage_paths
    assert sizes[:3] == [256, 64, 16]


@pytest.mark.parametrize(
    ("name", "size", "expected", "options"),
    [
        ("resnet18", 32, numbered("layer", 1, 2, 3, 4), {}),
        ("resnetv2_18", 32, numbered("stages.", 0, 1, 2, 3), {}),
        ("mobilenetv3_small_050", 32, numbered("blocks.", 0, 1, 3, 5), {}),
        ("efficientnet_b0", 32, numbered("blocks.", 0, 1, 2, 4, 6), {}),
        ("regnety_002", 32, numbered("s", 1, 2, 3, 4), {}),
        ("ghostnet_050", 32, numbered("blocks.", 0, 2, 4, 6, 9), {}),
        ("dla34", 32, numbered("level", 2, 3, 4, 5), {}),
        ("convnext_atto", 32, numbered("stages.", 0, 1, 2, 3), {}),
        ("levit_128s", 64, numbered("stages.", 0, 1, 2), {"img_size": 64}),
        ("vit_tiny_patch16_224", 32, numbered("blocks.", 2, 5, 8, 11), {"img_size": 32}),
        ("test_vit", 32, numbered("blocks.", 0, 1, 2, 3, 4, 5), {"img_size": 32}),
        ("mixer_s32_224", 64, numbered("blocks.", 1, 3, 5, 7), {"img_size": 64}),
        ("twins_svt_small", 64, ("blocks.0.1", "blocks.1.1", "blocks.2.9", "blocks.3.3"), {}),
        ("visformer_tiny", 32, numbered("stage", 1, 2, 3), {"img_size": 32}),
        (
            "densenet121",
            32,
            (*numbered("features.denseblock", 1, 2, 3), "features.norm5"),
            {"block_config": (2, 2, 2, 2)},
        ),
    ],
)
def test_timm(name, size, expected, options):
    import timm

    network = timm.create_model(name, num_classes=3, **options)
    paths, _ = run(network, torch.zeros(2, 3, size, size))
    assert paths == expected


def test_timm_swin_keeps_its_channels_last():
    import timm

    network = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, img_size=64, depths=(1, 1, 2, 1))
    paths, sizes = run(network, torch.zeros(2, 3, 64, 64), channels_last=True)
    assert (paths, sizes) == (numbered("layers.", 0, 1, 2, 3), [256, 64, 16, 4])


def test_timm_feature_info_where_the_structure_says_too_little():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.entry = nn.Conv2d(3, 4, 3, 2)
            self.left = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
            self.right = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, 2))
            self.close = nn.Conv2d(4, 8, 1)
            self.fc = nn.Linear(8, 2)
            self.feature_info = [{"module": path} for path in ("entry", "left", "left", "right", "absent", "close")]

        def forward(self, x):
            return self.fc(self.close(self.right(self.left(self.entry(x)))).mean((2, 3)))

    assert run(Bare(), torch.zeros(2, 3, 16, 16))[0] == ("left", "right", "close")


@pytest.mark.parametrize(
    ("name", "size", "expected", "options"),
    [
        ("resnet18", 32, numbered("layer", 1, 2, 3, 4), {}),
        ("vgg11_bn", 32, numbered("features.", 2, 6, 13, 20, 27), {}),
        ("alexnet", 64, numbered("features.", 1, 4, 11), {}),
        ("mobilenet_v2", 32, numbered("features.", 1, 3, 6, 13, 18), {}),
        ("mobilenet_v3_small", 32, numbered("features.", 1, 3, 8, 12), {}),
        ("mnasnet0_5", 32, numbered("layers.", 8, 9, 11, 16), {}),
        ("efficientnet_b0", 32, numbered("features.", 1, 2, 3, 5, 8), {}),
        ("densenet121", 32, (*numbered("features.denseblock", 1, 2, 3), "features.norm5"), {}),
        ("convnext_tiny", 32, numbered("features.", 1, 3, 5, 7), {}),
        ("regnet_y_400mf", 32, numbered("trunk_output.block", 1, 2, 3, 4), {}),
        ("shufflenet_v2_x0_5", 32, numbered("stage", 2, 3, 4), {}),
        ("squeezenet1_0", 64, numbered("features.", 5, 10, 12), {}),
        ("squeezenet1_1", 64, numbered("features.", 4, 7, 12), {}),
        ("vit_b_32", 32, numbered("encoder.layers.encoder_layer_", 2, 5, 8, 11), {"image_size": 32}),
        (
            "googlenet",
            64,
            numbered("inception", "3b", "4b", "4d", "5b"),
            {"aux_logits": False, "init_weights": False},
        ),
        ("inception_v3", 96, ("Mixed_5d", "Mixed_6e", "Mixed_7c"), {"aux_logits": False, "init_weights": False}),
    ],
)
def test_torchvision(name, size, expected, options):
    from torchvision import models

    network = models.get_model(name, weights=None, num_classes=3, **options)
    paths, _ = run(network, torch.zeros(2, 3, size, size))
    assert paths == expected


def test_torchvision_swin():
    from torchvision import models

    network = models.get_model("swin_t", weights=None, num_classes=3)
    paths, sizes = run(network, torch.zeros(2, 3, 32, 32), channels_last=True)
    assert (paths, sizes) == (numbered("features.", 1, 3, 5, 7), [64, 16, 4, 1])


TOKENS = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
PYRAMID = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
TRANSFORMERS = {
    "ViT": ({**TOKENS, "num_hidden_layers": 3}, ".layers.", (0, 1, 2)),
    "DeiT": ({**TOKENS, "num_hidden_layers": 8}, ".layers.", (1, 3, 5, 7)),
    "Dinov2": ({**TOKENS, "num_hidden_layers": 1}, ".encoder.layer.", (0,)),
    "ResNet": ({**PYRAMID, "embedding_size": 8, "layer_type": "basic"}, ".encoder.stages.", (0, 1, 2, 3)),
    "RegNet": ({**PYRAMID, "embedding_size": 8, "groups_width": 8}, ".encoder.stages.", (0, 1, 2, 3)),
    "ConvNext": ({**PYRAMID, "image_size": 32}, ".encoder.stages.", (0, 1, 2, 3)),
    "ConvNextV2": ({**PYRAMID, "image_size": 32}, ".encoder.stages.", (0, 1, 2, 3)),
    "Swin": (
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4},
        ".encoder.layers.",
        (0, 1),
    ),
    "MobileNetV1": ({"depth_multiplier": 0.25}, ".layer.", (1, 5, 9, 21, 25)),
    "MobileNetV2": ({"depth_multiplier": 0.25}, ".layer.", (1, 4, 11, 15)),
}


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_transformers(family):
    import transformers

    options, middle, numbers = TRANSFORMERS[family]
    config = getattr(transformers, f"{family}Config")(num_labels=3, **options)
    network = getattr(transformers, f"{family}ForImageClassification")(config)
    paths, _ = run(network, torch.zeros(2, 3, 32, 32))
    if middle == ".layers." and not hasattr(network.base_model, "layers"):
        middle = ".encoder.layer."  # as transformers 4 calls them
    assert paths == numbered(f"{network.base_model_prefix}{middle}", *numbers)


# networks of one's own


def conv(c_in, c_out, stride=1):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.BatchNorm2d(c_out), nn.ReLU())


def head(channels):
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3)]


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.first, self.second = conv(c_in, c_out, stride), conv(c_out, c_out)

    def forward(self, x):
        return self.second(self.first(x))


def test_sequential_is_cut_before_pools():
    two = lambda i, o: [*conv(i, o), *conv(o, o)]  # noqa: E731
    network = nn.Sequential(
        *two(3, 4), nn.MaxPool2d(2), *two(4, 8), nn.Dropout(), nn.AvgPool2d(2), *two(8, 8), *head(8)
    )
    assert run(network, torch.zeros(2, 3, 16, 16)) == (("5", "13", "20"), [256, 64, 16])


def test_sequential_is_cut_before_strides_and_ends_before_the_classifier():
    network = nn.Sequential(
        conv(3, 4), conv(4, 4), conv(4, 8, 2), conv(8, 8), nn.Flatten(), nn.Linear(512, 9), nn.Linear(9, 3)
    )
    assert run(network, torch.zeros(2, 3, 16, 16)) == (("1", "3"), [256, 64])


def test_nested_head_is_no_stage():
    body = [conv(3, 4), nn.MaxPool2d(2), conv(4, 4)]
    network = nn.Sequential(*body, nn.Sequential(nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert run(network, torch.zeros(2, 3, 16, 16))[0] == ("0", "2")


def test_stem_beside_blocks_is_no_stage():
    network = nn.Sequential(conv(3, 4), Block(4, 4), Block(4, 4), Block(4, 8, 2), *head(8))
    assert run(network, torch.zeros(2, 3, 16, 16))[0] == ("1", "2", "3")


def test_more_than_four_blocks_are_joined_by_resolution():
    network = nn.Sequential(*(Block(3, 3, 1 + (i in (2, 3))) for i in range(6)), *head(3))
    assert run(network, torch.zeros(2, 3, 16, 16)) == (("1", "2", "5"), [256, 64, 16])


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(1, (0,)), (4, (0, 1, 2, 3)), (6, (0, 1, 2, 3, 4, 5)), (7, (0, 2, 4, 6)), (12, (2, 5, 8, 11))],
)
def test_blocks_of_one_resolution(blocks, expected):
    network = nn.Sequential(*(Block(3, 3) for _ in range(blocks)), *head(3))
    assert run(network, torch.zeros(2, 3, 8, 8))[0] == numbered("", *expected)


def test_more_than_six_resolutions_are_grouped():
    network = nn.Sequential(*(Block(3, 3, 2) for _ in range(8)), *head(3))
    assert run(network, torch.zeros(2, 3, 32, 32))[0] == ("1", "3", "5", "7")


def test_wrapped_networks_are_looked_into():
    inner = build("resnet8", num_classes=3)
    assert run(nn.Sequential(nn.Identity(), inner), torch.zeros(2, 3, 16, 16))[0] == numbered("1.stage", 1, 2, 3)
    whole = nn.Sequential(conv(3, 4), nn.Sequential(Block(4, 4), Block(4, 4, 2), Block(4, 4)), *head(4))
    assert run(whole, torch.zeros(2, 3, 16, 16))[0] == ("1.0", "1.1", "1.2")


def test_lists_of_blocks_end_at_their_last_block():
    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv(3, 4)
            self.groups = nn.ModuleList(nn.ModuleList([Block(4, 4, 2), Block(4, 4)]) for _ in range(3))
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            x = self.stem(x)
            for group in self.groups:
                for block in group:
                    x = block(x)
            return self.out(x.mean((2, 3)))

    assert run(Lists(), torch.zeros(2, 3, 16, 16)) == (numbered("groups.", "0.1", "1.1", "2.1"), [64, 16, 4])


def test_fully_connected_chain_has_its_hidden_layers():
    layers = [nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    assert run(nn.Sequential(*layers), torch.zeros(2, 3, 4, 4))[0] == ("2", "5")


def test_signals():
    layers = [nn.Conv1d(3, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(4, 4, 3), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3))
    assert find_stages(network) == ("1", "4")


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv2(self.conv1(x).relu()[:, :, ::2, ::2]).relu().mean((2, 3))
        return self.fc3(self.fc2(self.fc1(x)))


def test_numbered_convolutions():
    assert run(LeNet(), torch.zeros(2, 3, 28, 28)) == (("conv1", "conv2"), [576, 64])


def test_what_the_network_says_comes_first():
    network = LeNet()
    network.stage_paths = ("conv2",)
    assert find_stages(network) == ("conv2",)
    network.stage_paths = ("conv3",)
    with pytest.raises(StagesNotFound, match=r"'conv3' is not a module of LeNet; .*conv2"):
        find_stages(network)


def test_compiled_network_is_looked_into():
    network = torch.compile(build("resnet8", num_classes=3), backend="eager")
    assert find_stages(network) == numbered("_orig_mod.stage", 1, 2, 3)


class Unclear(nn.Module):
    def __init__(self):
        super().__init__()
        self.entry, self.middle, self.exit = Block(3, 4), Block(4, 4), Block(4, 4)
        self.fc = nn.Linear(4, 3)


def test_nothing_found_shows_what_to_choose_from():
    with pytest.raises(StagesNotFound) as error:
        find_stages(Unclear())
    message = str(error.value)
    assert message.startswith("no stages found in Unclear; pass stages=[...]")
    assert "'entry' (Block), 'middle' (Block), 'exit' (Block), 'fc' (Linear), 'entry.first' (Sequential)" in message
    assert message.count("(") == 8
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("network", [nn.Identity(), nn.Linear(3, 3), nn.Sequential(nn.Flatten(), nn.Linear(3, 3))])
def test_networks_without_features(network):
    with pytest.raises(StagesNotFound, match="no stages found"):
        find_stages(network)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["stage1", "stage4"], r"'stage4' is not a module of ResNet; .*stage3"),
        (["zzz"], r"'zzz' is not a module of ResNet; stem, stage1, stage2, stage3, classifier, "),
        ([""], r"'' is not a module"),
        ([], r"stages=\[\] names no stage of ResNet"),
    ],
)
def test_check_stages(paths, message):
    network = build("resnet8", num_classes=3)
    assert check_stages(network, ["stage1.0", "stage3"]) == ("stage1.0", "stage3")
    with pytest.raises(StagesNotFound, match=message):
        check_stages(network, paths)
