"""MetaMixer in a training loop of one's own: two networks of different architecture teach each other.

The method is the four lines between ``for`` and ``zero_grad``; the rest is what every loop in PyTorch has.
Here it runs for a few steps on the images that come with the package:

    python examples/own_loop.py
"""

import torch
from torch.utils.data import DataLoader, TensorDataset

from metamixer import DML, Cohort, MetaMixer, evaluate, total
from metamixer.data import EvalLoader, load, normalise
from metamixer.models import resnet8, wrn_16_1


def main(steps: int = 20) -> list[float]:
    """Train for some steps and give the losses."""
    torch.manual_seed(0)
    data = load("fashion-mini")
    images, labels = normalise(data.train.fetch(torch.arange(len(data.train))), data.mean, data.std), data.train.labels
    loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True, drop_last=True)

    cohort = Cohort([resnet8(num_classes=10, in_channels=1), wrn_16_1(num_classes=10, in_channels=1)])
    mixer, loss = MetaMixer(), DML(temperature=4.0)
    optimizer = torch.optim.SGD(cohort.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step, (images, labels) in enumerate(loader):
        if step == steps:
            break
        plan = mixer(images, labels)  # what is mixed with what, how, and at which stage of the networks
        outputs = cohort(images, plan)  # one forward pass for each peer
        terms = loss(outputs, plan.targets(labels, num_classes=10))  # {"task": (P,), "distill": (P,)}
        objective = total(terms)
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        losses.append(objective.item())
        if step % 5 == 0:
            print(
                f"step {step:3d}", {name: [round(value, 2) for value in term.tolist()] for name, term in terms.items()}
            )

    report = evaluate(cohort, EvalLoader(data.test, data.mean, data.std), names=["resnet8", "wrn_16_1"])
    for score in report.rows:
        print(f"{score.name:10s} {100 * score.accuracy:.1f} % of {report.images} test images after {steps} steps")
    return losses


if __name__ == "__main__":
    main()
