"""Draw docs/images/metamixer.png: what MetaMixer makes of four images of two classes, by the plan that training uses.

python scripts/readme_picture.py
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib import pyplot as plt

from metamixer import Blend, Paste
from metamixer.data import load

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent


def main() -> None:
    data = load("fashion-mini")
    names = list(data.classes)
    chosen = [names.index(name) for name in ("T-shirt/top", "Ankle boot")]
    pixels = torch.stack([image for label in chosen for image in data.train.images[data.train.labels == label][3:5]])
    pixels = pixels.float() / 255
    low, high = torch.tensor([[9, 5], [2, 12]]).repeat_interleave(2, 0), torch.tensor([[24, 19], [17, 27]])
    local = Paste(low, high.repeat_interleave(2, 0), (28, 28), partner=torch.tensor([1, 0, 3, 2]))(pixels)
    mixed = Blend(torch.tensor(0.6), torch.tensor([2, 3, 0, 1]))(local)
    figure, axes = plt.subplots(2, 4, figsize=(7.2, 3.9), dpi=110)
    columns = [
        ("four images of two classes", (pixels[0], pixels[2])),
        ("", (pixels[1], pixels[3])),
        ("local: a box of another\nimage of the class", (local[0], local[2])),
        ("global: two classes blended\nat a random stage", (mixed[0], mixed[2])),
    ]
    labels = [("T-shirt",) * 3 + ("60 % T-shirt, 40 % boot",), ("boot",) * 3 + ("60 % boot, 40 % T-shirt",)]
    for column, (title, pair) in enumerate(columns):
        for row, image in enumerate(pair):
            axis = axes[row, column]
            axis.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(labels[row][column], fontsize=8)
            for spine in axis.spines.values():
                spine.set_color("#999999")
        axes[0, column].set_title(title, fontsize=8.5)
    figure.tight_layout()
    target = ROOT / "docs" / "images" / "metamixer.png"
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target, facecolor="white")


if __name__ == "__main__":
    main()
