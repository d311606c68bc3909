from dataclasses import FrozenInstanceError
from types import SimpleNamespace

import pytest
import torch

from metamixer.core.types import Batch, Outputs, logits_of, total


def test_total_is_the_sum_over_terms_and_peers():
    """A sum: the gradient of one peer must not shrink when others join."""
    task, distill = torch.tensor([1.0, 2.0, 4.0]).requires_grad_(), torch.tensor([8.0, 16.0, 32.0]).requires_grad_()
    objective = total({"task": task, "distill": 0.5 * distill})
    assert objective.shape == ()
    assert objective.item() == 35.0
    objective.backward()
    assert task.grad.tolist() == [1.0, 1.0, 1.0]
    assert distill.grad.tolist() == [0.5, 0.5, 0.5]


def test_values():
    batch = Batch(torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 2]))
    assert len(batch) == 3
    assert batch.companions is None
    assert Outputs(torch.zeros(2, 3, 5)).peers == 2
    for value, name in ((batch, "images"), (Outputs(torch.zeros(1, 1, 1)), "logits")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)


def test_logits_in_what_networks_put_out():
    logits = torch.zeros(2, 3)
    for output in (logits, {"logits": logits, "loss": 1}, SimpleNamespace(logits=logits)):
        assert logits_of(output) is logits
