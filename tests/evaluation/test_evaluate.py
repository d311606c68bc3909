"""The report against counting by hand, image by image, in Python's floats."""

import contextlib
import json
import math

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.types import Batch
from metamixer.evaluation.evaluate import evaluate
from metamixer.models import resnet8


class Table(nn.Module):
    """A network whose logits are the image's first pixels: what the report should say is known."""

    def __init__(self, classes, shift):
        super().__init__()
        self.classes, self.stage = classes, nn.Identity()
        self.shift = nn.Parameter(torch.tensor(float(shift)))
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.stage(x.flatten(1)[:, : self.classes].roll(round(self.shift.item()), 1)) * 2


def tables(classes, shifts):
    return Cohort([Table(classes, shift) for shift in shifts], stages=["stage"])


def data(classes, sizes, seed=0):
    g = torch.Generator().manual_seed(seed)
    batches = []
    for size in sizes:
        labels = torch.randint(classes, (size,), generator=g)
        images = torch.randn(size, classes, generator=g) + 0.8 * torch.eye(classes)[labels]
        batches.append(Batch(images[:, None, None], labels))
    return batches


def softmax(z):
    shifted = [math.exp(x - max(z)) for x in z]
    return [x / sum(shifted) for x in shifted]


def by_hand(cohort, batches):
    """Accuracy, top-5 and nll of every peer and of the mean probability, and how often all peers agree."""
    probabilities, labels = [], []
    with torch.no_grad():
        for batch in batches:
            for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
                probabilities.append([softmax(peer(image[None])[0].tolist()) for peer in cohort.peers])
                labels.append(label)
    agreed = sum(len({max(range(len(p)), key=p.__getitem__) for p in peers}) == 1 for peers in probabilities)
    rows = []
    for peer in [*range(len(cohort.peers)), None]:
        right = right5 = nll = 0
        for peers, label in zip(probabilities, labels, strict=True):
            p = [sum(column) / len(peers) for column in zip(*peers, strict=True)] if peer is None else peers[peer]
            order = sorted(range(len(p)), key=lambda c: -p[c])
            right += order[0] == label
            right5 += label in order[:5]
            nll -= math.log(p[label])
        rows.append((right / len(labels), right5 / len(labels), nll / len(labels)))
    return rows, agreed / len(labels)


@pytest.mark.parametrize(
    ("classes", "shifts"), [(7, [0, 1, 2]), (6, [0, 0]), (5, [0, 1]), (2, [0]), (12, [0, 3])], ids=str
)
def test_the_report_is_counted_by_hand(classes, shifts):
    cohort, batches = tables(classes, shifts), data(classes, [16, 16, 5])
    report = evaluate(cohort, iter(batches))
    rows, agreement = by_hand(cohort, batches)
    assert report.images == 37
    assert report.agreement == pytest.approx(agreement)
    assert report.rows == (*report.peers, report.ensemble)
    assert [row.name for row in report.rows] == [*map(str, range(len(shifts))), "ensemble"]
    for score, (accuracy, top5, nll) in zip(report.rows, rows, strict=True):
        assert score.accuracy == pytest.approx(accuracy)
        assert score.nll == pytest.approx(nll, rel=1e-5)
        assert score.top5 == (pytest.approx(top5) if classes > 5 else None)


def test_the_ensemble_averages_probabilities_not_logits():
    """One peer is surer of class 0 than the two others are of class 1."""
    rows = [[1.0, 0.0, 0.0], [-0.2, 0.2, 0.0], [-0.2, 0.2, 0.0]]

    class Fixed(nn.Module):
        def __init__(self, row):
            super().__init__()
            self.row, self.stage = nn.Parameter(torch.tensor([row])), nn.Identity()

        def forward(self, x):
            return self.stage(self.row.expand(len(x), -1))

    report = evaluate(
        Cohort([Fixed(row) for row in rows], stages=["stage"]), [Batch(torch.zeros(4, 1, 2, 2), torch.zeros(4).long())]
    )
    mean = sum(softmax(row)[0] for row in rows) / 3
    assert report.ensemble.nll == pytest.approx(-math.log(mean), rel=1e-5)
    assert mean != pytest.approx(softmax([sum(column) / 3 for column in zip(*rows, strict=True)])[0], rel=1e-3)
    assert report.agreement == 0


def test_names_and_plain_numbers():
    report = evaluate(tables(6, [0, 1]), data(6, [8]), names=["left", "right"])
    assert [score.name for score in report.rows] == ["left", "right", "ensemble"]
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["images"] == 8
    assert plain["peers"][1] == report.peers[1].as_dict()
    assert plain["ensemble"]["accuracy"] == report.ensemble.accuracy
    assert plain["agreement"] == report.agreement


@pytest.mark.parametrize("training", [True, False])
def test_runs_in_evaluation_mode_and_puts_the_mode_back(training):
    cohort = tables(4, [0, 1]).train(training)
    evaluate(cohort, data(4, [4, 4]))
    assert [peer.modes for peer in cohort.peers] == [[False, False]] * 2
    assert [module.training for module in cohort.modules()] == [training] * len(list(cohort.modules()))


def test_the_mode_comes_back_after_an_error():
    cohort = tables(4, [0, 1]).train()

    def breaks():
        yield from data(4, [4])
        raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        evaluate(cohort, breaks())
    assert cohort.training
    assert cohort.peers[0].training


def test_nothing_learns():
    torch.manual_seed(0)
    cohort = Cohort([resnet8(num_classes=4, in_channels=1), resnet8(num_classes=4, in_channels=1)], frozen=[1])
    g = torch.Generator().manual_seed(0)
    batches = [Batch(torch.randn(6, 1, 8, 8, generator=g), torch.randint(4, (6,), generator=g)) for _ in range(2)]
    before = {name: value.clone() for name, value in cohort.state_dict().items()}
    first, again = evaluate(cohort, batches), evaluate(cohort, batches)
    assert first == again
    for name, value in cohort.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [peer.training for peer in cohort.peers] == [True, False]


def test_precision_is_entered_for_every_batch():
    entered = []

    class Spy(contextlib.ContextDecorator):
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *error):
            entered.append(False)

    evaluate(tables(4, [0]), data(4, [4, 4]), precision=Spy())
    assert entered == [True, False, True, False]
    report = evaluate(tables(4, [0]), data(4, [64]), precision=torch.autocast("cpu", torch.bfloat16))
    assert report.peers[0].nll == pytest.approx(evaluate(tables(4, [0]), data(4, [64])).peers[0].nll, rel=0.05)


def test_no_images():
    with pytest.raises(ValueError, match="no images"):
        evaluate(tables(4, [0]), [])
