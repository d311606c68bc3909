"""Stages whose outputs hold the batch on another axis, or in several tensors, against networks that are cut open."""

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.plan import Blend, MixPlan

LAM, PARTNER = torch.tensor(0.3, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 5, 0])
BATCH = len(PARTNER)


def plan_at(stage):
    return MixPlan((Blend(LAM, PARTNER, stage),))


def mixed(x, axis=0):
    return LAM * x + (1 - LAM) * x.index_select(axis, PARTNER)


def signals(length, seed=0):
    return torch.randn(BATCH, 3, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Encoder(nn.Module):
    """Time first, as ``nn.TransformerEncoderLayer`` has it by default."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(3, 8).double()
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0).double() for _ in range(2))
        self.head = nn.Linear(8, 4).double()

    def forward(self, x, after_first=lambda h: h):
        h = self.embed(x.transpose(1, 2)).transpose(0, 1)
        h = self.blocks[1](after_first(self.blocks[0](h)))
        return self.head(h.mean(0))


@pytest.mark.parametrize("length", [2, 3, 4, BATCH, 9])
def test_time_first_is_mixed_along_the_batch(length):
    """As many steps in time as images would hide the fault, as many as the probing batches have would hide it there."""
    cohort, x = Cohort([Encoder(0), Encoder(1)]), signals(length)
    outputs = cohort(x, plan_at(1))
    for peer, logits, stages in zip(cohort.peers, outputs.logits, outputs.stages, strict=True):
        seen = []
        wanted = peer(x, lambda h: seen.append(mixed(h, axis=1)) or seen[-1])  # noqa: B023
        torch.testing.assert_close(logits, wanted)
        torch.testing.assert_close(stages[0], seen[0].transpose(0, 1))  # what is recorded begins with the batch


class Recurrent(nn.Module):
    """Classified by the last hidden state: an LSTM puts out ``(output, (h, c))`` with ``(layers, B, H)`` states."""

    def __init__(self, kind, batch_first, layers=2):
        super().__init__()
        torch.manual_seed(0)
        self.batch_first, self.kind = batch_first, kind
        self.first = kind(3, 8, layers, batch_first=batch_first).double()
        self.second = kind(8, 8, layers, batch_first=batch_first).double()
        self.head = nn.Linear(16, 4).double()

    def forward(self, x, change=lambda out, states: (out, states)):
        out, _ = self.first(x.transpose(1, 2) if self.batch_first else x.movedim(2, 0))
        out, states = change(*self.second(out))
        h = states if self.kind is nn.GRU else torch.tanh(states[1]) * states[0]
        return self.head(torch.cat([h[-1], out.mean(1 if self.batch_first else 0)], -1))


@pytest.mark.parametrize("layers", [2, BATCH])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_every_tensor_of_a_recurrent_layer_is_mixed(kind, batch_first, layers):
    network, x = Recurrent(kind, batch_first, layers), signals(5)

    def change(out, states):
        out = mixed(out, 0 if batch_first else 1)
        return out, mixed(states, 1) if kind is nn.GRU else tuple(mixed(state, 1) for state in states)

    outputs = Cohort([network], stages=["first", "second"])(x, plan_at(2))
    torch.testing.assert_close(outputs.logits[0], network(x, change))
    assert outputs.stages[0][1].shape == (BATCH, 5, 8)


class Parts(nn.Module):
    """A stage that puts out whatever ``form`` makes of its features."""

    def __init__(self, form, read):
        super().__init__()
        self.stage, self.head, self.read = Shaped(form), nn.Linear(3, 4).double(), read

    def forward(self, x):
        return self.head(self.read(self.stage(x)))


class Shaped(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(3, 3).double(), form

    def forward(self, x):
        return self.form(self.linear(x))


FORMS = {
    "dict": (lambda h: {"a": h, "b": {"c": 2 * h, "scale": h.new_ones(3)}}, lambda out: out["a"] + out["b"]["c"]),
    "list": (lambda h: [h.new_ones(3), h, None], lambda out: out[0] * out[1]),
    "another axis": (lambda h: h.T, lambda out: out.T),
}


@pytest.mark.parametrize("form", FORMS)
def test_nested_outputs(form):
    network = Parts(*FORMS[form])
    x = signals(1)[..., 0]
    outputs = Cohort([network], stages=["stage"])(x, plan_at(1))
    shaped, read = FORMS[form]
    torch.testing.assert_close(outputs.logits[0], network.head(read(shaped(mixed(network.stage.linear(x))))))


@pytest.mark.parametrize(
    ("form", "read", "shown"),
    [
        (lambda h: h.reshape(-1), lambda out: out.reshape(-1, 3), r"\(6,\) and \(9,\)"),
        (lambda h: (h.sum(), None), lambda out: out[0] + torch.zeros(6, 3).double(), r"\(\) and \(\)"),
        (lambda h: h.unbind(), torch.stack, r"\(3,\), \(3,\) and \(3,\), \(3,\), \(3,\)"),
        (lambda h: h @ h.T, lambda out: out[:, :1].expand(-1, 3), r"\(2, 2\) and \(3, 3\)"),
    ],
    ids=["folded", "no batch", "one for each image", "twice"],
)
def test_what_has_no_batch_axis_is_refused_at_once(form, read, shown):
    cohort = Cohort([Parts(form, read)], stages=["stage"])
    x = signals(1)[..., 0]
    cohort(x)  # without mixing it does not matter
    with pytest.raises(ValueError, match=rf"peer 0, stage 1 \(stage\) returns {shown} for 2 and 3 images"):
        cohort(x, plan_at(1))


def test_integers_of_the_batch_are_refused():
    network = Parts(lambda h: (h, h.argmax(-1)), lambda out: out[0])
    with pytest.raises(ValueError, match="int64"):
        Cohort([network], stages=["stage"])(signals(1)[..., 0], plan_at(1))


class Moody(nn.Module):
    """Another output in training than in evaluation."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3).double()

    def forward(self, x):
        h = self.linear(x)
        return (h, h) if self.training else h


def test_another_structure_in_training_is_refused():
    network = nn.Sequential(Moody(), Pick(), nn.Linear(3, 4).double())
    with pytest.raises(ValueError, match="stage 1 returns a tuple with 2 tensors, 1 were expected"):
        Cohort([network], stages=["0"])(signals(1)[..., 0], plan_at(1))


class Pick(nn.Module):
    def forward(self, x):
        return x[0] if isinstance(x, tuple) else x


def test_probing_changes_nothing():
    """Statistics, random numbers, modes and gradients are as without probing."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Dropout(), nn.Flatten(), nn.Linear(12, 4)
    ).double()
    cohort, x = Cohort([network], stages=["0", "2"]), signals(5)
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(1)
    first = cohort(x, plan_at(1)).logits
    torch.manual_seed(1)
    assert torch.equal(cohort(x, plan_at(1)).logits, first)
    assert [module.training for module in network] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
