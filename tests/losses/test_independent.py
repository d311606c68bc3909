import pytest
import torch
from torch.nn import functional as F

from metamixer.core.types import Outputs
from metamixer.losses import Independent


@pytest.mark.parametrize("peers", [1, 3])
def test_cross_entropy_of_each_peer(peers):
    logits = torch.randn(peers, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    terms = Independent()(Outputs(logits), torch.eye(5, dtype=torch.float64)[labels], progress=0.5)
    assert list(terms) == ["task"]
    wanted = torch.stack([F.cross_entropy(peer, labels) for peer in logits])
    torch.testing.assert_close(terms["task"], wanted)
    grads = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (terms["task"].sum(), wanted.sum())]
    torch.testing.assert_close(*grads)


def test_labels_as_indices_are_refused():
    with pytest.raises(ValueError, match="soft"):
        Independent()(Outputs(torch.zeros(2, 3, 3)), torch.tensor([0, 1, 2]))
