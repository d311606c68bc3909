import copy
import pickle

import pytest
import torch

from metamixer.losses.components.step_counter import StepCount


def test_it_counts_from_one():
    count = StepCount()
    assert count.steps == 0
    assert [count.add() for _ in range(3)] == [1, 2, 3]
    assert count.steps == 3
    assert count.steps.dtype == torch.int64


def test_the_count_is_not_read_from_the_device():
    count = StepCount().to("meta")  # where nothing can be read
    assert [count.add(), count.add()] == [1, 2]


@pytest.mark.parametrize("before", [0, 5])
def test_a_loaded_count_is_followed(before):
    old, new = StepCount(), StepCount()
    for _ in range(3):
        old.add()
    for _ in range(before):
        new.add()
    new.load_state_dict(old.state_dict())
    assert [new.add(), new.add()] == [4, 5]
    assert old.steps == 3


def test_a_count_inside_of_a_module_is_loaded_with_it():
    old, new = (torch.nn.ModuleDict({"count": StepCount()}) for _ in range(2))
    old["count"].add()
    new.load_state_dict(old.state_dict())
    assert new["count"].add() == 2


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda count: pickle.loads(pickle.dumps(count))])
def test_copies_count_by_themselves(make_copy):
    count = StepCount()
    count.add()
    other = make_copy(count)
    assert (other.add(), other.add(), count.add()) == (2, 3, 2)
    assert other.steps == 3
