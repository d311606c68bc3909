"""The base of all losses, and modules of somebody else's that have less than it."""

import pytest
import torch
from torch import nn

from metamixer.core.types import Outputs
from metamixer.losses import Loss
from tests import toys


class OfLearners(Loss):
    """A number for each peer that learns, one for every peer, and one to watch."""

    def terms(self, outputs, targets, progress):
        self.watched = {"seen": torch.tensor([5.0, 6.0])}
        return {"task": torch.tensor([1.0, 2.0]), "all": torch.arange(3.0) + 7}


class Plain(nn.Module):
    """No hook, no attribute: what anyone would write."""

    def forward(self, outputs, targets, progress=None):
        return {"task": -(targets * outputs.logits.log_softmax(-1)).sum(-1).mean(-1)}


class Counting(Plain):
    """One hook alone."""

    needs = ("features",)

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def after_step(self, cohort):
        self.steps += 1


def test_terms_stand_in_the_places_of_the_peers_that_learn():
    outputs, loss = Outputs(torch.zeros(3, 2, 4), frozen=(1,)), OfLearners()
    terms = loss(outputs, torch.eye(4)[:2])
    assert {name: value.tolist() for name, value in terms.items()} == {"task": [1, 0, 2], "all": [7, 0, 9]}
    assert loss.watched["seen"].tolist() == [5, 0, 6]


def test_targets_that_are_not_soft_are_refused_for_all():
    with pytest.raises(ValueError, match="soft"):
        OfLearners()(Outputs(torch.zeros(3, 2, 4)), torch.tensor([0, 1]))


def test_a_plain_module_gets_what_it_lacks():
    module = Counting()
    loss = Loss.of(module)
    assert (loss.needs, loss.shadows, loss.watched, loss.deployable(2)) == (("features",), "", {}, None)
    assert loss.setup(None) is loss.before_epoch(None, None) is None
    loss.after_step(None)
    assert module.steps == 1
    assert Loss.of(OfLearners()).needs == ()


@pytest.mark.parametrize("kind", [Plain, Counting])
def test_a_plain_module_trains_and_resumes(kind, tmp_path):
    whole = toys.trainer(tmp_path, epochs=2, loss=kind())
    whole.fit(toys.loader(), toys.validation())
    assert list(whole.loss.state_dict()) == ([] if kind is Plain else ["steps"])
    assert kind is Plain or whole.loss.steps == 2 * len(toys.loader())
    again = toys.trainer(tmp_path, epochs=2, loss=kind())
    again.fit(toys.loader(), toys.validation(), resume=True)
    assert all(torch.equal(value, toys.weights(again)[name]) for name, value in toys.weights(whole).items())
