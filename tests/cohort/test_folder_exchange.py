"""Weights that travel through files, and files that others left half written."""

import pytest
import safetensors.torch
import torch
from torch import nn

from metamixer.cohort.folder_exchange import exchange


def network(seed, width=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def weights(of):
    return {name: value.clone() for name, value in of.state_dict().items()}


def test_two_processes_see_each_other(tmp_path):
    one, two = network(1), network(2)
    of_two, of_one = network(8), network(9)
    folder = tmp_path / "made" / "when needed"
    assert exchange(folder, 0, one, {1: of_two}) == []  # the other has not come yet
    torch.testing.assert_close(weights(of_two), weights(network(8)), rtol=0, atol=0)
    assert exchange(folder, 1, two, {0: of_one}) == [0]
    assert exchange(folder, 0, one, {1: of_two}) == [1]
    for copy, original in ((of_one, one), (of_two, two)):
        torch.testing.assert_close(weights(copy), weights(original), rtol=0, atol=0)
    assert sorted(path.name for path in folder.iterdir()) == ["peer-0.safetensors", "peer-1.safetensors"]


def test_the_file_is_that_of_the_last_call(tmp_path):
    one = network(1)
    exchange(tmp_path, 0, one, {})
    with torch.no_grad():
        one[0].weight += 1
    exchange(tmp_path, 0, one, {})
    torch.testing.assert_close(safetensors.torch.load_file(tmp_path / "peer-0.safetensors"), weights(one))


def test_weights_that_share_memory_or_are_strided(tmp_path):
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    conv = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
    for number, own in enumerate((tied, conv)):
        exchange(tmp_path, number, own, {})
        torch.testing.assert_close(safetensors.torch.load_file(tmp_path / f"peer-{number}.safetensors"), weights(own))


@pytest.mark.parametrize(
    "content", [b"", b"no tensors", None, "half", "infinite"], ids=["empty", "text", "a folder", "half", "infinite"]
)
def test_what_cannot_be_used_is_passed_over(content, tmp_path):
    """The others still come, and the copy stays what it was."""
    exchange(tmp_path, 1, network(1), {})
    exchange(tmp_path, 2, network(2), {})
    path = tmp_path / "peer-1.safetensors"
    if content is None:
        path.unlink()
        path.mkdir()
    elif content == "half":
        path.write_bytes(path.read_bytes()[:-20])
    elif content == "infinite":
        broken = network(1)
        with torch.no_grad():
            broken[0].bias[1] = float("nan")
        exchange(tmp_path, 1, broken, {})
    else:
        path.write_bytes(content)
    copies = {1: network(11), 2: network(12)}
    with pytest.warns(UserWarning, match=r"passed over .*peer-1\.safetensors"):
        assert exchange(tmp_path, 0, network(0), copies) == [2]
    torch.testing.assert_close(weights(copies[1]), weights(network(11)), rtol=0, atol=0)
    torch.testing.assert_close(weights(copies[2]), weights(network(2)), rtol=0, atol=0)


def test_another_network_is_an_error(tmp_path):
    exchange(tmp_path, 1, network(1, width=4), {})
    with pytest.raises(ValueError, match=r"peer-1\.safetensors does not fit .* process 1.*size mismatch"):
        exchange(tmp_path, 0, network(0), {1: network(1)})


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="keep an earlier copy"):
        assert exchange(tmp_path / "file", 0, network(0), {}) == []
