"""A problem small enough to train in a second: used by the tests of the loop."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from metamixer import DML, Cohort, MetaMixer, Optim, Trainer
from metamixer.core.types import Batch
from metamixer.data import Augment, TensorImages, TrainLoader


def network(seed: int, dropout: float = 0.2, width: int = 6) -> nn.Module:
    """Two stages with batch norm and dropout: both have to survive a resume."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(width * 16, 3),
    )


def cohort(peers: int = 2) -> Cohort:
    return Cohort([network(seed) for seed in range(peers)], stages=["0", "1"])


def images(count: int = 40) -> TensorImages:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 120, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):  # each class is bright somewhere else
        pixels[row, :, 2 * label : 2 * label + 3] += 100
    return TensorImages(pixels, labels, ("a", "b", "c"))


def loader(batch_size: int = 8) -> TrainLoader:
    return TrainLoader(images(), Augment(pad=1), [0.3], [0.2], batch_size, seed=0, companions=True)


def validation() -> list[Batch]:
    held = images(12)
    return [Batch(held.images.float() / 255 / 0.2, held.labels)]


def trainer(folder=None, epochs: int = 4, **settings) -> Trainer:
    return Trainer(
        cohort(),
        settings.pop("mixer", MetaMixer(local_probability=0.5)),
        settings.pop("loss", DML(ramp_up=0.5)),
        optim=Optim(lr=0.05, warmup=0.1, clip=5.0),
        epochs=epochs,
        accelerator="cpu",
        folder=folder,
        **settings,
    )


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.cohort.state_dict().items()}


class StopAt:
    """A loader whose epoch raises after some steps: a crash at a place of one's choosing."""

    def __init__(self, inner: TrainLoader, step: int) -> None:
        self.inner, self.left, self.class_counts = inner, step, inner.class_counts

    def __len__(self) -> int:
        return len(self.inner)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.inner.epoch(epoch, start):
            if self.left == 0:
                raise ConnectionError("crash")
            self.left -= 1
            yield batch


def squares(count: int, seed: int) -> tuple[TensorImages, torch.Tensor]:
    """Bright squares on black, and their boxes ``(count, 4)``; labels alternate."""
    draw = torch.Generator().manual_seed(seed)
    images, boxes = torch.zeros(count, 1, 24, 24, dtype=torch.uint8), torch.zeros(count, 4)
    for row in range(count):
        w, h = torch.randint(4, 11, (2,), generator=draw).tolist()
        x, y = torch.randint(0, 13, (2,), generator=draw).tolist()
        images[row, :, y : y + h, x : x + w] = 200
        boxes[row] = torch.tensor([x, y, x + w, y + h])
    return TensorImages(images, torch.arange(count) % 2, ("a", "b")), boxes


def blobs(count: int, seed: int) -> TensorImages:
    """Rectangles on black; class 0 is the only thing in any scene that is brighter than 180."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = torch.randint(1, 10, (2,), generator=draw).tolist()
        h, w = torch.randint(8, 17, (2,), generator=draw).tolist()
        image[:, y : y + h, x : x + w] = 255 if label == 0 else 120
    return TensorImages(images, labels, ("bright", "dim"))
