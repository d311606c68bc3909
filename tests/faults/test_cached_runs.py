"""Runs with a cache of decoded images: killed while it is written, on a full disk, with damage, beside another run."""

import signal

import pytest

from metamixer.runs.run import read_recipe
from tests.faults.children import Server
from tests.faults.runs import outcome, photos, words

# Python 3.12 warns of fork in a process with threads; the workers touch none of them.
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"), pytest.mark.timeout(180)]
CROPS = ("data.crop_scale=[0.4,1]", "data.cache_size=8")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture
def run(server, tmp_path):
    """Trains on photos that do not stay in memory: exit code, output."""
    data = photos(tmp_path / "data")

    def start(name, *more, workers=0, resume=False, **order):
        command = ["train", "--resume", tmp_path / name] if resume else [*words(data, workers=workers), "--out"]
        command += [] if resume else [tmp_path / name]
        return server.run(*command, *more, streamed=True, **order)

    return start


def shards(tmp_path):
    return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.shard")}


@pytest.mark.parametrize("workers", [0, 2])
def test_without_crops_a_run_is_the_same_to_the_last_bit(run, tmp_path, workers):
    cache = f"data.cache={tmp_path / 'cache'}"
    for name, more in (("plain", ()), ("cached", (cache,))):
        code, said = run(name, *more, workers=workers)
        assert code == 0, said
    assert outcome(tmp_path / "plain") == outcome(tmp_path / "cached")
    assert len(shards(tmp_path)) == 3
    assert read_recipe(tmp_path / "plain").digest == read_recipe(tmp_path / "cached").digest


# Before the first shard, before the third, and with all of one written but its name.
@pytest.mark.parametrize("die", [("metamixer.data.files.disk_cache:write_shard", 0),
                                 ("metamixer.data.files.disk_cache:write_shard", 2), ("os:fsync", 1)])  # fmt: skip
@pytest.mark.parametrize("crops", [(), pytest.param(CROPS, marks=pytest.mark.slow)])
def test_a_training_that_was_killed_while_it_wrote_the_cache_ends_as_any_other(run, tmp_path, die, crops):
    cache = f"data.cache={tmp_path / 'cache'}"
    code, _ = run("killed", cache, *crops, die=die)
    assert code == -signal.SIGKILL
    kept = shards(tmp_path)
    assert len(kept) == die[1]
    assert len(list((tmp_path / "cache").rglob("*.tmp"))) == (die[0] == "os:fsync")
    code, said = run("killed", cache, *crops)
    assert code == 0, said
    code, said = run("whole", f"data.cache={tmp_path / 'other'}", *crops)
    assert code == 0, said
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert shards(tmp_path).items() >= kept.items()
    assert {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".shard"}


@pytest.mark.slow
def test_a_run_that_crops_from_the_cache_is_killed_resumed_evaluated_and_used(run, server, tmp_path):
    more = (f"data.cache={tmp_path / 'cache'}", *CROPS)
    code, _ = run("killed", *more, workers=2, die=("torch.optim:SGD.step", 7))
    assert code == -signal.SIGKILL
    code, said = run("killed", resume=True)
    assert code == 0, said
    code, said = run("whole", *more, workers=2)
    assert code == 0, said
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    code, _ = run("decoded", *more[1:], die=("torch.optim:SGD.step", 7))
    code, said = run("decoded", more[0], resume=True)
    assert code == 2, said
    assert "data.cache: not set, here on" in said
    before = shards(tmp_path)
    for command in (["evaluate", tmp_path / "whole"], ["predict", tmp_path / "whole", tmp_path / "data" / "class 1"]):
        code, said = server.run(*command, streamed=True)
        assert code == 0, said
    for path in before:
        path.unlink()
    code, said = server.run("evaluate", tmp_path / "whole", streamed=True)
    assert code == 0, said
    assert not shards(tmp_path)  # only a training writes it


def test_a_full_disk_is_one_line(run, tmp_path):
    """The limit lets a checkpoint be written, and no shard."""
    code, said = run("run", f"data.cache={tmp_path / 'cache'}", limit=3000)
    assert code == 74, said
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert errors[0].startswith("error: data.cache: ")
    assert "cannot be written: File too large; accepted is a folder on a disk with room, or data.cache=off" in errors[0]
    assert "Traceback" not in said
    code, said = run("run", "data.cache=off")
    assert code == 0, said


def test_a_damaged_image_in_the_cache_changes_nothing(run, tmp_path):
    cache = f"data.cache={tmp_path / 'cache'}"
    assert run("first", cache)[0] == 0
    for path in shards(tmp_path):
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
    code, said = run("second", cache, workers=2)
    assert code == 0, said
    assert "is damaged and was removed" in said
    assert outcome(tmp_path / "first")["losses"] == outcome(tmp_path / "second")["losses"]
    assert run("third", cache)[0] == 0
    assert len(shards(tmp_path)) == 3


@pytest.mark.slow
def test_two_runs_at_once_share_a_cache(run, server, tmp_path):
    cache = f"data.cache={tmp_path / 'cache'}"
    assert run("alone")[0] == 0
    data, other = tmp_path / "data", Server(tmp_path)
    try:
        children = [
            one.start(*words(data), "--out", tmp_path / name, cache, streamed=True)
            for one, name in ((server, "one"), (other, "two"))
        ]
        for child in children:
            assert child.wait() == 0, child.text()
    finally:
        other.close()
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two") == outcome(tmp_path / "alone")
    assert {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".shard"}
