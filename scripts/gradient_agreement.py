"""Do the gradients of mixed images point where those of new images do? A look at the two halves of MetaMixer.

    python scripts/gradient_agreement.py study-data/cifar10-explore --image-size 16 --epochs 400 --seed 10

Two peers train with DML and one mixer. At some epochs, without changing them, the gradient of the training objective is
taken over one epoch of the training images as they are, mixed locally, mixed globally and both; and the gradient of
cross-entropy over images that nobody trained on (the `test` split). Printed are the cosines, means of the peers: with
the gradient of the new images, and with that of the training images as they are. A half that teaches something that
generalizes has a larger cosine with the new images than the plain training images have.
"""

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from metamixer import DML, Cohort, MetaMixer, evaluate, total
from metamixer.core.types import Batch
from metamixer.data import Augment, EvalLoader, TrainLoader, load
from metamixer.models import resnet8

MIXERS = {
    "plain": MetaMixer(local_probability=0, global_probability=0),
    "local": MetaMixer(local_probability=1, global_probability=0),
    "global": MetaMixer(local_probability=0, global_alpha=2),
    "both": MetaMixer(local_probability=1, global_alpha=2),
}
NEW = 2000


def gradients(cohort: Cohort, losses: Callable[[Cohort, Batch], Tensor], batches: Sequence[Batch]) -> list[Tensor]:
    """The sum over the batches, one vector for each peer; the cohort keeps its weights and statistics."""
    copy = deepcopy(cohort).train()
    copy.zero_grad()
    for batch in batches:
        losses(copy, batch).backward()
    return [torch.cat([weight.grad.flatten() for weight in peer.parameters()]) for peer in copy.peers]


def cosine(one: list[Tensor], other: list[Tensor]) -> float:
    """Mean over the peers."""
    return sum(F.cosine_similarity(a, b, dim=0).item() for a, b in zip(one, other, strict=True)) / len(one)


def main(words: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Print the table; its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--looks", type=int, default=8, help="how often the gradients are compared")
    parser.add_argument("--mixer", choices=MIXERS, default="plain", help="how the peers are trained")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(words)
    torch.manual_seed(chosen.seed)
    data = load(chosen.data, image_size=chosen.image_size)
    classes = len(data.classes)
    pad = data.train.fetch(torch.arange(1)).shape[-1] // 8
    loader = TrainLoader(data.train, Augment(pad=pad), data.mean, data.std, 64, chosen.seed, companions=True)
    new = list(EvalLoader(data.test, data.mean, data.std, batch_size=250))[: NEW // 250]
    cohort = Cohort([resnet8(num_classes=classes, in_channels=len(data.mean)) for _ in range(2)])
    loss = DML(temperature=4.0)
    draw = torch.Generator().manual_seed(chosen.seed)

    def objective(mixer: MetaMixer) -> Callable[[Cohort, Batch], Tensor]:
        def of(peers: Cohort, batch: Batch) -> Tensor:
            plan = mixer(batch.images, batch.labels, companions=batch.companions, generator=draw)
            return total(loss(peers(batch.images, plan), plan.targets(batch.labels, classes)))

        return of

    def hard(peers: Cohort, batch: Batch) -> Tensor:
        return sum(F.cross_entropy(logits, batch.labels) for logits in peers(batch.images).logits)

    optimizer = torch.optim.SGD(cohort.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = chosen.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
    )
    train, every, rows = objective(MIXERS[chosen.mixer]), max(1, chosen.epochs // chosen.looks), []
    for epoch in range(chosen.epochs + 1):
        if epoch % every == 0:
            batches = list(loader.epoch(epoch))
            towards = gradients(cohort, hard, new)
            of = {name: gradients(cohort, objective(mixer), batches) for name, mixer in MIXERS.items()}
            row = {"epoch": float(epoch)} | {f"{name}, new": cosine(of[name], towards) for name in of}
            rows.append(row | {f"{name}, plain": cosine(of[name], of["plain"]) for name in of if name != "plain"})
            if len(rows) == 1:
                print(*rows[0], sep=" | ")
            print(f"{epoch:5d}", *(f"{value:6.3f}" for value in list(rows[-1].values())[1:]), sep=" | ", flush=True)
        if epoch == chosen.epochs:
            break
        cohort.train()
        for batch in loader.epoch(epoch):
            optimizer.zero_grad()
            train(cohort, batch).backward()
            optimizer.step()
            schedule.step()
    report = evaluate(cohort, EvalLoader(data.test, data.mean, data.std))
    print("accuracy:", *(f"{score.name} {100 * score.accuracy:.1f} %" for score in report.rows))
    return rows


if __name__ == "__main__":
    main()
