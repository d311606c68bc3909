import math

import pytest
import torch

from metamixer.core.types import Batch
from metamixer.training.out_of_memory import is_of_memory, what_fits

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
