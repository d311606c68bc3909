import pytest
import torch

from metamixer.training.running_means import Sums
from tests.oracle import draw

P, C = 2, 3


def steps():
    """Batches of different size: terms, logits and soft targets."""
    for step, count in enumerate((4, 4, 1)):
        terms = {"task": draw(P, seed=step), "distill": draw(P, seed=10 + step)}
        yield terms, draw(P, count, C, seed=20 + step), draw(count, C, seed=30 + step).softmax(-1)


def by_hand():
    """The mean over images of each term, and the share of right answers."""
    means, right, images = {"task": [0.0] * P, "distill": [0.0] * P}, [0] * P, 0
    for terms, logits, targets in steps():
        for b in range(len(targets)):
            images += 1
            for p in range(P):
                right[p] += int(logits[p, b].tolist().index(max(logits[p, b].tolist())) == int(targets[b].argmax()))
                for name in means:
                    means[name][p] += float(terms[name][p])
    return {name: [value / images for value in row] for name, row in means.items()}, [n / images for n in right]


def assert_means(sums, wanted):
    terms, accuracy = sums.means()
    assert terms.keys() == wanted[0].keys()
    for name, row in wanted[0].items():
        assert terms[name] == pytest.approx(row)
    assert accuracy == pytest.approx(wanted[1])


def test_batches_count_by_their_images():
    sums = Sums()
    for each in steps():
        sums.add(*each)
    assert sums.images == 9
    assert_means(sums, by_hand())


def test_it_continues_from_a_checkpoint(tmp_path):
    first, *rest = steps()
    before, after = Sums(), Sums()
    before.add(*first)
    torch.save(before.state(), tmp_path / "state.pt")
    after.load(torch.load(tmp_path / "state.pt", weights_only=True), torch.device("cpu"))
    for each in rest:
        after.add(*each)
    assert_means(after, by_hand())
    assert before.images == 4


def test_the_sums_of_several_processes():
    parts = [Sums(), Sums()]
    for number, each in enumerate(steps()):
        parts[number % 2].add(*each)
    others = iter([*parts[1].values.values(), torch.tensor(parts[1].images)])
    assert_means(parts[0].summed(lambda value: value + next(others)), by_hand())


def test_nothing_was_added():
    assert Sums().means() == ({}, [])


def test_it_keeps_no_graph():
    terms, logits, targets = next(steps())
    sums = Sums()
    sums.add({name: term.requires_grad_() for name, term in terms.items()}, logits.requires_grad_(), targets)
    assert not any(value.requires_grad for value in sums.values.values())
