import copy
import math

import pytest
import torch
from torch import nn

from metamixer.cohort.cohort import Cohort
from metamixer.core.types import Batch
from metamixer.losses.dml import DML
from metamixer.mixers import NoMix
from metamixer.training import trainer
from metamixer.training.optimizer_step import DoesNotFit
from metamixer.training.out_of_memory import is_of_memory, kept_bytes, too_large, what_fits
from metamixer.training.trainer import Trainer

BATCH = Batch(torch.zeros(24, 3, 8, 6), torch.zeros(24, dtype=torch.int64))


def test_memory_that_torch_cannot_have():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**58)
    assert is_of_memory(caught.value)
    assert is_of_memory(MemoryError())
    assert is_of_memory(torch.OutOfMemoryError("CUDA out of memory"))


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors(error):
    assert not is_of_memory(error)


@pytest.mark.parametrize("most", [1, 2, 3, 6, 11])
def test_the_first_number_of_parts_that_fits_is_found_by_trial(most):
    """A machine that holds ``most`` images at once."""
    tried = []

    def fits(parts):
        tried.append(parts)
        return math.ceil(24 / parts) <= most

    said = what_fits(BATCH, 1, fits)
    wanted = next((parts for parts in (2, 4, 8, 16) if math.ceil(24 / parts) <= most), None)
    assert said.startswith("out of memory with 24 images of 3x8x6 at a time on cpu")
    if wanted is None:
        assert tried == [2, 4, 8, 16]
        assert "not even one image" in said
    else:
        assert tried == [parts for parts in (2, 4, 8, 16) if parts <= wanted]
        assert f"train.micro_batches={wanted} fits" in said
        assert f"in parts of {math.ceil(24 / wanted)}," in said
        assert f"train.batch_size={max(2, 24 // wanted)};" in said


def test_parts_that_are_taken_already():
    said = what_fits(BATCH, 4, lambda parts: parts == 8)
    assert said.startswith("out of memory with 6 images of")
    assert "train.micro_batches=8 fits" in said


def test_where_nothing_can_be_tried():
    assert "train.micro_batches=6 takes about half of it" in what_fits(BATCH, 3, None)


def cohort(**options):
    layers = (nn.Flatten(), nn.Linear(144, 50), nn.Tanh(), nn.Linear(50, 3))
    return Cohort([nn.Sequential(*copy.deepcopy(layers)) for _ in range(2)], stages=["2"], **options)


def test_what_is_kept_is_counted_once_for_each_storage():
    counted = kept_bytes(cohort().eval(), torch.zeros(2, 3, 8, 6))
    assert counted == 4 * (144 + 2 * 50)  # the images, which both peers see, and the outputs of each tanh
    assert kept_bytes(cohort(frozen=[1]).eval(), torch.zeros(2, 3, 8, 6)) == 4 * (144 + 50)


def test_a_step_that_will_not_fit_is_refused_before_it_is_taken(monkeypatch):
    each = 4 * (144 + 2 * 50)
    assert too_large(each, BATCH, 1, 24 * each) == ""
    assert too_large(each, BATCH, 4, 6 * each) == ""
    said = too_large(each, BATCH, 1, 24 * each - 1)
    assert said.startswith("24 images of 3x8x6 at a time need at least 0.0 GiB, and 0.0 are free; ")
    assert "train.micro_batches=3 or train.batch_size=8 fits" in said  # in half of what is free
    assert "smaller images" in too_large(each, BATCH, 24, each - 1)
    peers = cohort()
    weights = copy.deepcopy(peers.state_dict())
    monkeypatch.setattr(trainer, "available_memory", lambda: 24 * each - 1)
    with pytest.raises(DoesNotFit, match=r"24 images of 3x8x6 .* train\.micro_batches=3"):
        Trainer(peers, NoMix(), DML(), epochs=1, accelerator="cpu").fit([BATCH])
    assert all(torch.equal(value, weights[name]) for name, value in peers.state_dict().items())
    Trainer(peers, NoMix(), DML(), epochs=1, accelerator="cpu", micro_batches=3).fit([BATCH])
