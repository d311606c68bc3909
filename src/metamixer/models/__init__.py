"""Networks by name: bundled networks for small images, and those of timm, torchvision or your own code."""

from metamixer.core.registry import Entry, Registry, lazy_names


def _network(target: str, summary: str, paper: str) -> Entry:
    return Entry(f"{__name__}.{target}", summary, paper)


# One line for each network, called with ``num_classes`` and ``in_channels``.
# fmt: off
MODELS = Registry({
    "resnet8": _network("resnet:resnet8", "ResNet for small images: 8 layers", "arXiv 1512.03385"),
    "resnet14": _network("resnet:resnet14", "ResNet for small images: 14 layers", "arXiv 1512.03385"),
    "resnet20": _network("resnet:resnet20", "ResNet for small images: 20 layers", "arXiv 1512.03385"),
    "resnet32": _network("resnet:resnet32", "ResNet for small images: 32 layers", "arXiv 1512.03385"),
    "resnet44": _network("resnet:resnet44", "ResNet for small images: 44 layers", "arXiv 1512.03385"),
    "resnet56": _network("resnet:resnet56", "ResNet for small images: 56 layers", "arXiv 1512.03385"),
    "resnet110": _network("resnet:resnet110", "ResNet for small images: 110 layers", "arXiv 1512.03385"),
    "resnet8x4": _network("resnet:resnet8x4", "ResNet for small images: 8 layers, 4 times as wide", "arXiv 1512.03385"),
    "resnet32x4": _network("resnet:resnet32x4", "ResNet for small images: 32 layers, 4 times as wide", "arXiv 1512.03385"),
    "wrn_16_1": _network("wide_resnet:wrn_16_1", "Wide ResNet for small images: 16 layers, width 1", "arXiv 1605.07146"),
    "wrn_16_2": _network("wide_resnet:wrn_16_2", "Wide ResNet for small images: 16 layers, width 2", "arXiv 1605.07146"),
    "wrn_40_1": _network("wide_resnet:wrn_40_1", "Wide ResNet for small images: 40 layers, width 1", "arXiv 1605.07146"),
    "wrn_40_2": _network("wide_resnet:wrn_40_2", "Wide ResNet for small images: 40 layers, width 2", "arXiv 1605.07146"),
    "vgg8": _network("vgg:vgg8", "VGG for small images: 8 layers", "arXiv 1409.1556"),
    "vgg13": _network("vgg:vgg13", "VGG for small images: 13 layers", "arXiv 1409.1556"),
})
# fmt: on

_OTHERS = ["ensemble:Ensemble", "resnet:ResNet", "vgg:VGG", "wide_resnet:WideResNet"]
_FACTORY = ["factory:UnknownModel", "factory:build", "factory:check_name", "factory:names"]
__getattr__, __all__ = lazy_names(
    __name__, [*MODELS.targets, *(f"{__name__}.{target}" for target in (*_OTHERS, *_FACTORY))]
)
