import copy
import pickle

import pytest

from metamixer.data.errors import DataError, ImageError, WorkerError


@pytest.mark.parametrize("made", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_an_error_keeps_its_code_on_its_way_from_a_process(made):
    error = made(ImageError("a.jpg: 0 bytes", "empty"))
    assert type(error) is ImageError
    assert (str(error), error.code) == ("a.jpg: 0 bytes", "empty")


def test_what_is_caught_by_what():
    assert ImageError("a.jpg: cut off").code == "broken"
    assert issubclass(ImageError, DataError)
    assert issubclass(DataError, ValueError)
    assert not issubclass(WorkerError, DataError)  # the data are not at fault
