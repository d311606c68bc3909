"""Signals instead of images: two 1-D networks of different architecture teach each other, mixed along time.

    python examples/signals_1d.py --epochs 15

The data are made here: noisy sines, squares, triangles and sawtooths of random pitch and phase. Nothing else differs
from images: samples are ``(channels, time)``, the local half of MetaMixer pastes a window of another signal of the
class, the global half blends whole signals, and stages are found inside of the networks.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metamixer import DML, Batch, Cohort, MetaMixer, evaluate, total, train_step

CLASSES = ("sine", "square", "triangle", "sawtooth")


def signals(count: int, seed: int, length: int = 96, noise: float = 0.5) -> TensorDataset:
    """``(count, 1, length)`` noisy waveforms of unit power, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(CLASSES)
    pitch, phase = 3 + 4 * torch.rand(count, 1, generator=draw), torch.rand(count, 1, generator=draw)
    turn = torch.linspace(0, 1, length) * pitch + phase
    saw = 2 * (turn % 1) - 1
    shapes = torch.stack([(2 * torch.pi * turn).sin(), saw.sign(), 2 * saw.abs() - 1, saw])
    clean = shapes[labels, torch.arange(count)]
    clean = clean / clean.square().mean(-1, keepdim=True).sqrt()  # or loudness would give the class away
    return TensorDataset((clean + noise * torch.randn(count, length, generator=draw))[:, None], labels)


def plain(width: int = 16) -> nn.Module:
    """Convolutions that halve the resolution."""

    def block(inside: int, outside: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv1d(inside, outside, 7, 2, 3), nn.BatchNorm1d(outside), nn.ReLU())

    trunk = [block(1, width), block(width, 2 * width), block(2 * width, 4 * width)]
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4 * width, len(CLASSES)))


class Block(nn.Module):
    """A dilated convolution with its shortcut inside, so that all of what leaves a stage passes through its end.

    With the addition outside of the module the mixing point would mix the branch and leave the shortcut as it is.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(B, width, T)`` -> the same shape."""
        return hidden + self.norm(self.convolution(hidden)).relu()


def dilated(width: int = 24) -> nn.Module:
    """Residual blocks at full resolution whose view widens."""
    blocks = [Block(width, dilation) for dilation in (1, 2, 4, 8)]
    head = [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, len(CLASSES))]
    return nn.Sequential(nn.Conv1d(1, width, 5, padding=2), *blocks, *head)


def main(words: Sequence[str] | None = None) -> tuple[list[float], list[float]]:
    """Accuracies of the peers and the ensemble on the test signals before and after training."""
    parser = argparse.ArgumentParser(description="two 1-D networks teach each other")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--count", type=int, default=2000, help="training signals")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args(words)
    torch.manual_seed(0)
    loader = DataLoader(signals(chosen.count, seed=1), batch_size=64, shuffle=True, drop_last=True)
    images, labels = (each.to(chosen.device) for each in signals(1000, seed=2).tensors)
    test = [Batch(images, labels)]

    cohort = Cohort([plain(), dilated()]).to(chosen.device)
    print("stages:", *cohort.stage_paths)
    # Mild, as short trainings need, and off in the second half.
    mixer, loss = MetaMixer(local_probability=0.3, global_probability=0.3, until=0.5), DML()
    optimizer = torch.optim.AdamW(cohort.parameters(), lr=3e-3)
    steps = chosen.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)

    before = [row.accuracy for row in evaluate(cohort, test).rows]
    done = 0
    for epoch in range(chosen.epochs):
        cohort.train()
        for signal, label in loader:
            batch = Batch(signal.to(chosen.device), label.to(chosen.device))
            terms = train_step(cohort, mixer, loss, batch, progress=done / steps).terms
            optimizer.zero_grad()
            total(terms).backward()
            optimizer.step()
            schedule.step()
            done += 1
        # Of the last batch, for each peer.
        print(
            f"epoch {epoch + 1:2d}",
            {name: [round(value, 2) for value in term.tolist()] for name, term in terms.items()},
        )
    report = evaluate(cohort, test, names=["plain", "dilated"])
    for score, start in zip(report.rows, before, strict=True):
        print(f"{score.name:10s} {start:.1%} before, {score.accuracy:.1%} after; chance: {1 / len(CLASSES):.1%}")
    return before, [row.accuracy for row in report.rows]


if __name__ == "__main__":
    main()
