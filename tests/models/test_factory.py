import sys
import time
import types

import pytest
import torch
from torch import nn

from metamixer.models import MODELS, UnknownModel, build, names, offline
from metamixer.models.factory import takes_image_size


@pytest.mark.parametrize("name", MODELS)
def test_takes_any_channels_classes_and_sizes(name):
    network = build(name, num_classes=7, in_channels=1).eval()
    assert isinstance(network.classifier, nn.Linear)
    sizes = [(28, 28), (64, 48)] if name in ("resnet8", "resnet14", "wrn_16_1", "vgg8") else [(28, 28)]
    with torch.no_grad():
        for size in sizes:
            assert network(torch.zeros(2, 1, *size)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8"])
def test_every_weight_gets_a_gradient(name):
    network = build(name, num_classes=4)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8"])
def test_convolutions_start_with_the_spread_of_he(name):
    for module in build(name, num_classes=10).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            k, _ = module.kernel_size
            assert module.weight.std().item() == pytest.approx((2 / (k * k * module.out_channels)) ** 0.5, rel=0.05)


def test_names_are_the_keys():
    assert names() == list(MODELS)


# build: timm, torchvision, import paths


def test_timm_convolutional_network_takes_any_size():
    network = build("timm:resnet10t", num_classes=4, in_channels=1, image_size=(32, 32)).eval()
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("size", [(32, 32), (64, 32), (160, 160)])
def test_timm_vit_is_built_for_the_size(size):
    network = build("timm:test_vit", num_classes=4, in_channels=2, image_size=size, drop_rate=0.1).eval()
    assert tuple(network.patch_embed.img_size) == size
    assert network(torch.zeros(2, 2, *size)).shape == (2, 4)
    assert network.head_drop.p == 0.1


@pytest.mark.parametrize(
    ("name", "size", "takes"),
    [("test_vit", (32, 64), True), ("test_vit", (160, 160), False), ("test_resnet", (32, 64), False)],
)
def test_which_networks_of_timm_are_built_for_a_size(name, size, takes):
    assert takes_image_size(f"timm:{name}", size, {"drop_rate": 0.1, "pretrained": True}) is takes


def test_timm_vit_keeps_its_usual_size():
    assert tuple(build("timm:test_vit", num_classes=4).patch_embed.img_size) == (160, 160)


@pytest.fixture
def pretrained(monkeypatch, tmp_path):
    """Weights of a small network of timm in a cache of the hub, as if they had been fetched; no network."""
    import timm
    from safetensors.torch import save_file

    constants = pytest.importorskip("huggingface_hub").constants
    torch.manual_seed(5)
    network = timm.create_model("test_resnet", pretrained=False)
    folder = tmp_path / f"models--{network.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    for name, text in (("refs/main", "a" * 40), (f"snapshots/{'a' * 40}/model.safetensors", "")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    saved = {key: value + 0.25 if value.is_floating_point() else value for key, value in network.state_dict().items()}
    file = folder / "snapshots" / ("a" * 40) / "model.safetensors"
    save_file(saved, file)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return saved, file


def test_pretrained_weights_are_taken_but_for_another_head(pretrained):
    saved, _ = pretrained
    for classes in (4, 1000):
        network = build("timm:test_resnet", num_classes=classes, pretrained=True)
        new = [key for key, value in network.state_dict().items() if not torch.equal(value, saved[key])]
        assert new == (["fc.weight", "fc.bias"] if classes == 4 else [])
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, classes)
    torch.manual_seed(0)
    first = build("timm:test_resnet", num_classes=4, pretrained=True).fc.weight
    torch.manual_seed(0)
    assert torch.equal(first, build("timm:test_resnet", num_classes=4, pretrained=True).fc.weight)


def test_pretrained_weights_that_lack_something_are_refused(pretrained):
    """timm passes over it where the head is another one."""
    from safetensors.torch import save_file

    saved, file = pretrained
    save_file({key: value for key, value in saved.items() if key != "layer2.0.conv1.weight"}, file)
    with pytest.raises(UnknownModel, match=r"do not fit it: .*Missing key.*layer2\.0\.conv1\.weight"):
        build("timm:test_resnet", num_classes=4, pretrained=True)


def test_timm_wrong_option_is_not_swallowed():
    with pytest.raises(TypeError, match="no_such_option"):
        build("timm:test_vit", num_classes=4, image_size=(32, 32), no_such_option=1)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision(name, channels):
    network = build(f"torchvision:{name}", num_classes=5, in_channels=channels).eval()
    assert network(torch.zeros(2, channels, 64, 64)).shape == (2, 5)


def test_torchvision_new_first_convolution_keeps_the_spread_of_its_output():
    torch.manual_seed(0)
    old = build("torchvision:resnet18", num_classes=5).conv1
    new = build("torchvision:resnet18", num_classes=5, in_channels=12).conv1
    assert (new.stride, new.padding, new.bias) == (old.stride, old.padding, None)
    assert new.weight.std().item() * 2 == pytest.approx(old.weight.std().item(), rel=0.05)


def test_torchvision_vit_is_built_for_the_size():
    network = build("torchvision:vit_b_32", num_classes=5, image_size=(64, 64))
    assert network.image_size == 64
    with pytest.raises(UnknownModel, match=r"square images, not \(64, 32\)"):
        build("torchvision:vit_b_32", num_classes=5, image_size=(64, 32))


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("own_networks")

    class Rgb(nn.Linear):
        def __init__(self, num_classes, width=3):
            super().__init__(width, num_classes)

    module.Rgb = Rgb
    module.Group = types.SimpleNamespace(net=lambda num_classes, in_channels: nn.Linear(in_channels, num_classes))
    module.sized = lambda num_classes, image_size, **rest: nn.Linear(image_size[0] + rest["in_channels"], num_classes)
    module.not_a_network = lambda **options: options
    monkeypatch.setitem(sys.modules, "own_networks", module)
    monkeypatch.setenv("METAMIXER_ALLOW_IMPORTS", "all")


@pytest.mark.usefixtures("plugin")
def test_import_path():
    assert build("own_networks:Rgb", num_classes=4, width=6).in_features == 6
    assert build("own_networks:Group.net", num_classes=4, in_channels=2).in_features == 2
    assert build("own_networks:sized", num_classes=4, in_channels=2, image_size=(7, 9)).in_features == 9
    assert build("metamixer.models:resnet8", num_classes=4, in_channels=1).stem[0].in_channels == 1


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        (
            "resnet21",
            3,
            r"'resnet21' is not a network; resnet.*resnet20.*'timm:NAME', 'torchvision:NAME', 'package.module:call",
        ),
        ("zzz", 3, r"'zzz' is not a network; resnet8, resnet14, .*vgg13 or 'timm:NAME'"),
        ("timm:resnet19", 3, r"'resnet19' is not in timm; .*resnet18"),
        ("torchvision:resnet19", 3, r"'resnet19' is not in torchvision; .*resnet18"),
        ("no_such_package.nets:f", 3, r"no module 'no_such_package'; 'timm:NAME'"),
        ("metamixer.nothing_here:f", 3, r"no module 'metamixer.nothing_here'"),
        ("own_networks:Rgbb", 3, r"'own_networks:Rgbb' is not a network; 'own_networks' has Rgb"),
        ("own_networks:", 3, r"'own_networks:' is not a network"),
        (":Rgb", 3, r"':Rgb' is not a network"),
        ("own_networks:Rgb", 1, r"no parameter 'in_channels', and the images have 1 channels"),
        ("own_networks:not_a_network", 3, r"made a dict; a torch.nn.Module is needed"),
    ],
)
def test_names_that_stand_for_nothing(name, channels, message):
    with pytest.raises(UnknownModel, match=message) as error:
        build(name, num_classes=3, in_channels=channels)
    assert isinstance(error.value, ValueError)


def test_a_module_that_lacks_something_of_its_own_says_so(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("METAMIXER_ALLOW_IMPORTS", "needs_more:net")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        build("needs_more:net", num_classes=2)


def test_pretrained_without_a_network_fails_in_seconds(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    for name in offline._PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(UnknownModel, match="pretrained weights are not in the cache, and cannot be downloaded"):
        build("timm:resnet10t", num_classes=3, pretrained=True)
    assert time.monotonic() - began < 20  # 48 with the library's retries
    assert not constants.HF_HUB_OFFLINE
