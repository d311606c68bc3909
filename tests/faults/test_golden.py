"""The numbers of every method do not change unasked: the terms of 20 steps, committed, equal to 1e-9.

A tiny cohort in float64, one thread, fixed seeds, no dropout. Every loss trains with MetaMixer, every mixer with DML.
A change that is meant is committed with new files::

    METAMIXER_GOLDEN=write .venv/bin/pytest -n0 tests/faults/test_golden.py

and says in its message which numbers moved and why. A method that is added gets its file in the same way.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from metamixer import DML, Batch, Cohort, MetaMixer, total
from metamixer.cohort.shared_trunk import share_trunk
from metamixer.config.registry import LOSSES, MIXERS
from metamixer.core.seeding import derive, generator
from metamixer.training.train_step import train_step
from tests import toys

FOLDER = Path(__file__).parent / "golden"
STEPS = 20
CASES = [*(("loss", name) for name in LOSSES), *(("mixer", name) for name in MIXERS)]


def double_network(seed):
    return toys.network(seed, dropout=0.0, width=4)


def cohort_for(loss):
    """Two peers that learn, with the teacher, the trunk or the shadows that the loss needs."""
    networks = [double_network(seed) for seed in range(3 if "teacher" in loss.needs else 2)]
    if "trunk" in loss.needs:
        share_trunk(networks, "0")
    frozen = [2] if "teacher" in loss.needs else []
    return Cohort(networks, stages=["0", "1"], frozen=frozen, shadows="shadows" in loss.needs).double()


def batches(views):
    """20 batches of two images of each class with their companions, and where they are needed a view for each peer."""
    held = toys.images(40)
    pixels, labels = held.images.double() / 255 / 0.2, held.labels
    by_class = [(labels == label).nonzero().flatten() for label in range(3)]
    for step in range(STEPS):
        g = generator(0, "golden", step)
        rows, others = (
            torch.cat([rows[torch.randperm(len(rows), generator=g)[:2]] for rows in by_class]) for _ in range(2)
        )
        shown = tuple(pixels[rows].roll(view, -1) for view in range(2)) if views else None
        yield Batch(pixels[rows], labels[rows], pixels[others], shown)


def twenty_steps(kind, name):
    """``{term: [[peer, ...] of each step]}`` of plain training with momentum."""
    torch.manual_seed(derive(0, "golden loss"))
    loss = LOSSES[name]() if kind == "loss" else DML()
    # The files are older than MetaMixer's default of 2 for alpha; test_digest.py sees a default that moves.
    mixer = MetaMixer(global_alpha=1.0) if kind == "loss" or name == "metamixer" else MIXERS[name]()
    cohort = cohort_for(loss).train()
    first = next(batches(False))
    if hasattr(loss, "setup"):
        with torch.no_grad():
            cohort.eval()
            loss.setup(cohort(first.images))
            cohort.train()
    loss.double()
    weights = [weight for weight in (*cohort.parameters(), *loss.parameters()) if weight.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    found: dict[str, list[list[float]]] = {}
    for step, batch in enumerate(batches("views" in loss.needs)):
        torch.manual_seed(derive(0, "network", step))
        progress = step / STEPS
        if hasattr(loss, "before_epoch") and step % 10 == 0:
            loss.before_epoch(cohort, [first])
            cohort.train()
        terms = train_step(cohort, mixer, loss, batch, generator(0, "mix", step), progress).terms
        optimizer.zero_grad()
        total(terms).backward()
        optimizer.step()
        if hasattr(loss, "after_step"):
            loss.after_step(cohort)
        for key, term in terms.items():
            assert term.dtype == torch.float64, key
            found.setdefault(key, []).append(term.tolist())
    return found


@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda value: value)
def test_twenty_steps_have_the_numbers_that_were_committed(kind, name):
    found, path = twenty_steps(kind, name), FOLDER / f"{kind}-{name}.json"
    if os.environ.get("METAMIXER_GOLDEN") == "write":
        FOLDER.mkdir(exist_ok=True)
        rows = {key: [[float(f"{value:.12g}") for value in row] for row in rows] for key, rows in found.items()}
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rows.items())
        path.write_text(f"{{\n{lines}\n}}\n")
    assert path.is_file(), f"METAMIXER_GOLDEN=write makes {path.name}, see above"
    wanted = json.loads(path.read_text())
    assert list(found) == list(wanted)
    for key, rows in wanted.items():
        for step, (here, there) in enumerate(zip(found[key], rows, strict=True), 1):
            assert here == pytest.approx(there, rel=1e-9, abs=1e-9), f"{key} in step {step}"


def test_every_file_is_of_a_method_and_the_methods_learn():
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(f"{kind}-{name}" for kind, name in CASES)
    for path in FOLDER.iterdir():
        rows = torch.tensor(json.loads(path.read_text())["task"])
        assert rows.shape[0] == STEPS
        assert rows[-5:].sum() < rows[:5].sum(), path.name


def test_other_weights_or_another_draw_would_be_seen():
    """The files are of these seeds: what differs in one of 20 plans or in one weight differs by more than 1e-9."""
    wanted = json.loads((FOLDER / "mixer-metamixer.json").read_text())
    assert wanted == json.loads((FOLDER / "loss-dml.json").read_text())
    others = [json.loads((FOLDER / f"mixer-{name}.json").read_text()) for name in MIXERS if name != "metamixer"]
    for other in others:
        for key, rows in wanted.items():
            assert rows[-1] != pytest.approx(other[key][-1], rel=1e-9, abs=1e-9)
