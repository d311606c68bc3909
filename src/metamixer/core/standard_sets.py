"""Standard data sets by name, and their torchvision classes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Standard:
    """A standard data set.

    Args:
        origin: the class in ``torchvision.datasets``; None for the set that comes with the package.
        summary: a description of one line.
        mirror: whether a mirrored image still belongs to its class.
    """

    origin: str | None
    summary: str
    mirror: bool = True


STANDARD = {
    "fashion-mini": Standard(None, "7,000 images of Fashion-MNIST, grey 28x28, 10 classes; comes with the package"),
    "mnist": Standard("MNIST", "70,000 handwritten digits, grey 28x28", mirror=False),
    "fashion-mnist": Standard("FashionMNIST", "70,000 pieces of clothing, grey 28x28, 10 classes"),
    "kmnist": Standard("KMNIST", "70,000 cursive Japanese letters, grey 28x28, 10 classes", mirror=False),
    "cifar10": Standard("CIFAR10", "60,000 animals and vehicles, colour 32x32, 10 classes"),
    "cifar100": Standard("CIFAR100", "60,000 things and creatures, colour 32x32, 100 classes"),
    "svhn": Standard("SVHN", "99,289 house-number digits, colour 32x32 (without the 'extra' part)", mirror=False),
    "stl10": Standard("STL10", "13,000 animals and vehicles, colour 96x96, 10 classes (without the unlabelled part)"),
}
