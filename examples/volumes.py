"""Volumes instead of images: two 3-D networks of different architecture teach each other.

    python examples/volumes.py --epochs 10

The data are made here: noisy balls, cubes, rods and shells of random size and place. Nothing else differs from images:
samples are ``(channels, depth, height, width)``, and the local half of MetaMixer pastes a block of another volume of
the class.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metamixer import DML, Batch, Cohort, MetaMixer, evaluate, total, train_step

CLASSES = ("ball", "cube", "rod", "shell")


def volumes(count: int, seed: int, side: int = 16, noise: float = 0.3) -> TensorDataset:
    """``(count, 1, side, side, side)`` noisy volumes, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    radius = side * (0.2 + 0.12 * torch.rand(count, 1, 1, 1, generator=draw))
    centre = side / 2 + side * 0.3 * (torch.rand(count, 3, 1, 1, 1, generator=draw) - 0.5)
    z, y, x = (torch.stack(torch.meshgrid(*[torch.arange(side) + 0.5] * 3, indexing="ij")) - centre).unbind(1)
    far, flat = (x**2 + y**2 + z**2).sqrt(), (x**2 + y**2).sqrt()
    cube = torch.stack([x, y, z]).abs().amax(0) < 0.8 * radius
    rod = (flat < 0.5 * radius) & (z.abs() < 1.4 * radius)
    shell = (far < radius) & (far > 0.6 * radius)
    shapes = torch.stack([far < radius, cube, rod, shell]).float()
    solid = shapes[labels, torch.arange(count)]
    return TensorDataset((solid + noise * torch.randn(solid.shape, generator=draw))[:, None], labels)


def block(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """Convolution, norm, activation."""
    return nn.Sequential(nn.Conv3d(inside, outside, 3, stride, 1), nn.BatchNorm3d(outside), nn.ReLU())


def plain(width: int = 8) -> nn.Module:
    """Three blocks, each at half the resolution of the one before."""
    trunk = [block(1, width, 2), block(width, 2 * width, 2), block(2 * width, 4 * width, 2)]
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4 * width, len(CLASSES)))


class Residual(nn.Module):
    """Two convolutions with their shortcut inside, then half the resolution: what leaves it is all that comes next."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(block(width, width), block(width, width))
        self.pool = nn.MaxPool3d(2)

    def forward(self, volume: Tensor) -> Tensor:
        """``(B, width, D, H, W)`` -> half of D, H and W."""
        return self.pool(volume + self.branch(volume))


def residual(width: int = 8) -> nn.Module:
    """A stem and two residual blocks; the class is read from the strongest answer anywhere."""
    head = [nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(width, len(CLASSES))]
    return nn.Sequential(block(1, width, 2), Residual(width), Residual(width), *head)


def main(words: Sequence[str] | None = None) -> tuple[list[float], list[float]]:
    """Accuracies of the peers and the ensemble on the test volumes before and after training."""
    parser = argparse.ArgumentParser(description="two 3-D networks teach each other")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--count", type=int, default=1000, help="training volumes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(words)
    torch.manual_seed(0)
    loader = DataLoader(volumes(chosen.count, seed=1), batch_size=32, shuffle=True, drop_last=True)
    images, labels = (each.to(chosen.device) for each in volumes(400, seed=2).tensors)
    test = [Batch(*pair) for pair in zip(images.split(100), labels.split(100), strict=True)]

    cohort = Cohort([plain(), residual()]).to(chosen.device)
    print("stages:", *cohort.stage_paths)
    # Mild, as short trainings need, and off in the second half.
    mixer, loss = MetaMixer(local_probability=0.3, global_probability=0.3, until=0.5), DML()
    optimizer = torch.optim.AdamW(cohort.parameters(), lr=5e-3)
    steps = chosen.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)

    before = [row.accuracy for row in evaluate(cohort, test).rows]
    done = 0
    for epoch in range(chosen.epochs):
        cohort.train()
        for volume, label in loader:
            batch = Batch(volume.to(chosen.device), label.to(chosen.device))
            terms = train_step(cohort, mixer, loss, batch, progress=done / steps).terms
            optimizer.zero_grad()
            total(terms).backward()
            optimizer.step()
            schedule.step()
            done += 1
        print(
            f"epoch {epoch + 1:2d}",
            {name: [round(value, 2) for value in term.tolist()] for name, term in terms.items()},
        )
    report = evaluate(cohort, test, names=["plain", "residual"])
    for score, start in zip(report.rows, before, strict=True):
        print(f"{score.name:10s} {start:.1%} before, {score.accuracy:.1%} after; chance: {1 / len(CLASSES):.1%}")
    return before, [row.accuracy for row in report.rows]


if __name__ == "__main__":
    main()
