"""Recorded steps on the CPU: a stand-in replays what CUDA would, so all but the capture itself is tried.

The stand-in keeps a capture's promises: recording runs nothing, a replay reads the memory of the recording and fills
the tensors that the recording returned.
"""

import copy
from dataclasses import dataclass

import pytest
import torch

from metamixer import DML, Codistillation, Cohort, MetaMixer, Trainer
from metamixer.graphs import StepGraphs
from metamixer.mixers import CutMix, ManifoldMixup, NoMix
from metamixer.plan import Blend, MixPlan, Paste
from metamixer.records import Batch
from tests import toys


class Recorder:
    """``torch.cuda.graph`` without a GPU. The weights are put back after the run that finds the outputs."""

    def __init__(self, state):
        self.state, self.recorded = state, 0

    def __call__(self, run):
        self.recorded += 1
        tensors = self.state()
        before = [tensor.detach().clone() for tensor in tensors]
        computed = run()
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        return _Again(run, computed), computed


@dataclass
class _Again:
    run: object
    computed: object

    def replay(self):
        terms, logits, targets = self.run()
        old_terms, old_logits, old_targets = self.computed
        with torch.no_grad():
            for old, new in [*((old_terms[name], terms[name]) for name in terms), (old_logits, logits)]:
                old.copy_(new)
            old_targets.copy_(targets)


def fit(monkeypatch, mixer, graphs, shadows=False):
    """Train the toy problem; with ``graphs`` every step goes through recorded steps."""
    torch.manual_seed(0)
    cohort = Cohort([toys.network(seed, dropout=0.0) for seed in range(2)], stages=["0", "1"], shadows=shadows)
    loss = Codistillation(interval=3, burn_in=0.2) if shadows else DML(ramp_up=0.5)
    trainer = Trainer(cohort, mixer, loss, epochs=4, accelerator="cpu")
    made = []
    if graphs:

        def state():
            moments = [value for each in trainer._run.optimizer.state.values() for value in each.values()]
            tensors = [value for value in moments if isinstance(value, torch.Tensor)]
            return [*cohort.state_dict().values(), *tensors]

        def graphs_on_the_cpu(compute, **settings):
            made.append(StepGraphs(compute, **settings, warm_up=1, record=Recorder(state)))
            return made[-1]

        monkeypatch.setattr("metamixer.trainer.StepGraphs", graphs_on_the_cpu)
        trainer.graphs = True
    trainer.fit(toys.loader())
    return cohort, made


@pytest.mark.parametrize(
    "mixer",
    [NoMix(), MetaMixer(), CutMix(probability=1), ManifoldMixup(stage_draws=2), MetaMixer(box="sample", lam="sample")],
    ids=lambda mixer: type(mixer).__name__,
)
def test_recorded_steps_train_as_usual_steps(monkeypatch, mixer):
    usual, _ = fit(monkeypatch, mixer, graphs=False)
    recorded, (graphs,) = fit(monkeypatch, mixer, graphs=True)
    assert any(kind.graph is not None for kind in graphs.kinds.values())
    assert sum(kind.seen for kind in graphs.kinds.values()) == 4 * len(toys.loader())
    torch.testing.assert_close(dict(recorded.state_dict()), dict(usual.state_dict()), rtol=1e-4, atol=1e-5)


def test_shadows_follow_their_peers_part_of_a_recorded_plan(monkeypatch):
    mixer = ManifoldMixup(stage_draws=2)
    usual, _ = fit(monkeypatch, mixer, graphs=False, shadows=True)
    recorded, (graphs,) = fit(monkeypatch, mixer, graphs=True, shadows=True)
    assert any(kind.graph is not None for kind in graphs.kinds.values())
    torch.testing.assert_close(dict(recorded.state_dict()), dict(usual.state_dict()), rtol=1e-4, atol=1e-5)


def test_one_graph_for_each_stage_and_not_for_each_plan(monkeypatch):
    _, (graphs,) = fit(monkeypatch, ManifoldMixup(), graphs=True)
    assert len(graphs.kinds) <= 2, "images and the end of stage 1"
    _, (graphs,) = fit(monkeypatch, NoMix(), graphs=True)
    assert len(graphs.kinds) == 1


def test_a_box_is_a_mask_that_every_replay_makes_anew():
    """A slice's bounds would be those of the recording for ever."""
    seen = []

    def compute(batch, plan, progress):
        images = plan.apply(batch.images, 0)
        seen.append(plan)
        return {"task": progress.expand(2).clone()}, images.clone()[None], plan.targets(batch.labels, 3)

    graphs = StepGraphs(compute, stages=2, peers=2, device=torch.device("cpu"), warm_up=1, record=Recorder(lambda: []))
    images, labels = torch.arange(4 * 64.0).view(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for low, high in [((0, 0), (3, 2)), ((1, 4), (5, 8)), ((2, 2), (2, 2)), ((0, 0), (8, 8))]:
        paste = Paste(torch.tensor(low), torch.tensor(high), (8, 8), partner=torch.tensor([1, 2, 3, 0]))
        terms, mixed, targets = graphs(Batch(images, labels), MixPlan((paste,)), low[0] / 10)
        torch.testing.assert_close(mixed[0], paste(images))
        torch.testing.assert_close(targets, MixPlan((paste,)).targets(labels, 3))
        assert terms["task"].tolist() == pytest.approx([low[0] / 10] * 2)
    assert len(graphs.kinds) == 1
    assert all(operation.low.ndim == 2 for plan in seen for operation in plan.operations)


def test_terms_are_the_callers_to_keep():
    graphs = StepGraphs(
        lambda batch, plan, progress: ({"task": batch.images.sum().expand(1).clone()}, batch.images, batch.images),
        stages=1,
        peers=1,
        device=torch.device("cpu"),
        warm_up=0,
        record=Recorder(lambda: []),
    )
    kept = [graphs(Batch(torch.full((2, 1), value), torch.zeros(2)), MixPlan(), 0.0)[0]["task"] for value in (1.0, 5.0)]
    assert [term.item() for term in kept] == [2.0, 10.0]


def test_other_shapes_are_another_kind():
    graphs = StepGraphs(
        lambda batch, plan, progress: ({}, batch.images, batch.images), stages=1, peers=1, device=torch.device("cpu")
    )
    for count in (4, 4, 3):
        graphs(Batch(torch.zeros(count, 2), torch.zeros(count)), MixPlan(), 0.0)
    blend = Blend(torch.tensor(0.5), torch.arange(4), 1)
    graphs(Batch(torch.zeros(4, 2), torch.zeros(4)), MixPlan((blend,)), 0.0)
    graphs(Batch(torch.zeros(4, 2), torch.zeros(4)), MixPlan((copy.copy(blend), blend)), 0.0)
    assert [kind.seen for kind in graphs.kinds.values()] == [2, 1, 1, 1]


def test_what_cannot_be_captured_says_what_would_work():
    def record(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = StepGraphs(
        lambda *_: ({}, None, None), stages=1, peers=1, device=torch.device("cpu"), warm_up=0, record=record
    )
    with pytest.raises(RuntimeError, match=r"graphs=False would work: operation not permitted"):
        graphs(Batch(torch.zeros(2, 2), torch.zeros(2)), MixPlan(), 0.0)
