"""Sets by name, and unknown names."""

import numpy as np
import pytest

from metamixer.data import DATASETS, DataError, load

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["cifr10", "Cifar-10"])
def test_unknown_names_are_answered_with_close_ones(name):
    with pytest.raises(DataError, match=r"did you mean 'cifar10'.*expected fashion-mini, .* 'hf:NAME'"):
        load(name)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"fashion-mini"}))
def test_missing_files_are_answered_with_the_folder_and_the_option(name, tmp_path):
    with pytest.raises(DataError) as caught:
        load(name, root=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "download=True" in str(caught.value)
