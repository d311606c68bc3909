"""Peers in a loop with Hugging Face Accelerate: the same script on a CPU, a GPU, or several processes.

pip install accelerate
python examples/accelerate_loop.py --epochs 5
accelerate launch --num_processes 2 examples/accelerate_loop.py --epochs 5
"""

import argparse
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metamixer import DML, Cohort, MetaMixer, total
from metamixer.data import ImageSet, load, normalise
from metamixer.models import resnet8, wrn_16_1


@torch.no_grad()
def accuracies(accelerator: Accelerator, cohort: nn.Module, batches: DataLoader) -> list[float]:
    """Of every peer, over all processes."""
    cohort.eval()
    right = []
    for images, labels in batches:
        hits = (cohort(images).logits.argmax(-1) == labels).float()  # (P, B)
        right.append(accelerator.gather_for_metrics(hits.T.contiguous()))  # joined along axis 0, without the padding
    return torch.cat(right).mean(0).tolist()


def main(words: Sequence[str] | None = None) -> tuple[list[float], list[float]]:
    """Accuracies of the peers on the test images before and after training."""
    parser = argparse.ArgumentParser(description="train two peers with Accelerate")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=None, help="training images of each class")
    parser.add_argument("--size", type=int, default=None, help="side in pixels; left out: as the images are")
    parser.add_argument("--precision", default="no", choices=["no", "bf16", "fp16"])
    chosen = parser.parse_args(words)
    accelerator = Accelerator(mixed_precision=chosen.precision)
    set_seed(0)
    data = load("fashion-mini", train_limit=chosen.limit, image_size=chosen.size)

    def batches(images: ImageSet, training: bool = False) -> DataLoader:
        pixels = normalise(images.fetch(torch.arange(len(images))), data.mean, data.std)
        return DataLoader(TensorDataset(pixels, images.labels), 64, shuffle=training, drop_last=training)

    cohort = Cohort([network(num_classes=len(data.classes), in_channels=1) for network in (resnet8, wrn_16_1)])
    # Mild, as short trainings need: see docs/results.md. A loss with weights of its own would go through `prepare` too.
    mixer, loss = MetaMixer(local_probability=0.3, global_probability=0.3, until=0.5), DML()
    optimizer = torch.optim.AdamW(cohort.parameters(), lr=3e-3)
    cohort, optimizer, train, val, test = accelerator.prepare(
        cohort, optimizer, batches(data.train, training=True), batches(data.val), batches(data.test)
    )
    set_seed(0, device_specific=True)  # each process mixes its part of a batch by draws of its own

    before = accuracies(accelerator, cohort, test)
    for epoch in range(chosen.epochs):
        cohort.train()
        sums: dict[str, Tensor] = {}
        for step, (images, labels) in enumerate(train):
            progress = (epoch + step / len(train)) / chosen.epochs
            plan = mixer(images, labels, progress=progress)
            with accelerator.autocast():
                terms = loss(cohort(images, plan), plan.targets(labels, len(data.classes)), progress=progress)
            optimizer.zero_grad()
            accelerator.backward(total(terms))
            optimizer.step()
            sums = {name: sums.get(name, 0) + term.detach() for name, term in terms.items()}
        means = {name: accelerator.reduce(term / len(train), "mean").tolist() for name, term in sums.items()}
        shown = {name: [round(value, 2) for value in values] for name, values in means.items()}
        accelerator.print(
            f"epoch {epoch + 1}", shown, "val", [round(v, 3) for v in accuracies(accelerator, cohort, val)]
        )
    after = accuracies(accelerator, cohort, test)
    for peer, (first, last) in enumerate(zip(before, after, strict=True)):
        accelerator.print(f"peer {peer}: {first:.1%} of the test images before, {last:.1%} after")
    return before, after  # accelerator.unwrap_model(cohort).peers[0] is an ordinary network


if __name__ == "__main__":
    main()
