"""Networks by name: small ones for small images, bundled here, and any of timm, torchvision or your own."""

from metamixer.models.ensemble import Ensemble
from metamixer.models.factory import MODELS, UnknownModel, build, check_name, names
from metamixer.models.resnet import (
    ResNet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from metamixer.models.vgg import VGG, vgg8, vgg13
from metamixer.models.wide_resnet import WideResNet, wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "MODELS",
    "VGG",
    "Ensemble",
    "ResNet",
    "UnknownModel",
    "WideResNet",
    "build",
    "check_name",
    "names",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
    "vgg8",
    "vgg13",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
