"""Runs on tar shards, here and on a server: stopped in the middle of an epoch, killed, cut off, moved."""

import shutil
import signal

import pytest

from metamixer.data.files import addresses
from tests.command import metamixer
from tests.faults.children import Server
from tests.faults.runs import TINY, outcome
from tests.shards import RangeServer, parquet, parquets, shards

# Python 3.12 warns of fork in a process with threads; the workers touch none of them.
pytestmark = [pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"), pytest.mark.timeout(180)]


@pytest.mark.slow
def test_parquet_files_are_streamed_stopped_resumed_and_moved(place, tmp_path):
    pytest.importorskip("datasets")
    children = place[2]
    words = ["train", *words_for(parquets(tmp_path / "data")), "data.stream=true", "data.workers=2", "--out"]
    code, said = children.run(*words, tmp_path / "whole")
    assert code == 0, said
    code, said = children.run(*words, tmp_path / "ended", die=("torch.optim:SGD.step", 7), signal=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, said
    code, said = children.run("train", "--resume", tmp_path / "ended")
    assert code == 0, said
    assert outcome(tmp_path / "ended") == outcome(tmp_path / "whole")
    (tmp_path / "data").rename(tmp_path / "moved")
    code, said = children.run("evaluate", tmp_path / "ended", "--data", tmp_path / "moved")
    assert code == 0, said
    parquet(tmp_path / "moved" / "test-0.parquet", range(100, 111), names=("y", "x"))
    code, said = children.run("evaluate", tmp_path / "ended", "--data", tmp_path / "moved")
    assert code == 65, said
    assert "test: 11 images, were 12" in said


def words_for(data):
    narrow = ["--peers", "resnet8,resnet8", "peers.0.widths=[2,2,4,4]", "peers.1.widths=[2,4,4,4]"]
    return ["--data", data, *TINY, *narrow, "data.buffer=32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of shards with a server of it, and one of children."""
    folder = tmp_path_factory.mktemp("data")
    shards(folder, (30, 25, 20))
    shards(folder, (12,), "test", first=200)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        children = Server(tmp_path_factory.mktemp("logs"))
        files = RangeServer(folder)
        yield folder, files, children
        files.close()
        children.close()


@pytest.fixture
def run(place, tmp_path):
    """Trains on the shards: exit code, output."""
    folder, files, children = place

    def start(name, *more, remote=False, workers=0, resume=False, **order):
        data = f"wds:{files.url if remote else folder}/{{train-{{00..02}},test-00}}.tar"
        words = ["--resume", tmp_path / name] if resume else [*words_for(data), "--out", tmp_path / name]
        return children.run("train", *words, *([] if resume else [f"data.workers={workers}"]), *more, **order)

    return start


@pytest.fixture(scope="module")
def reference(place, tmp_path_factory):
    """What runs come to that nobody disturbs, by workers; from shards of this machine."""
    known = {}

    def of(run, workers):
        if workers not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            code, said = run(folder, workers=workers)
            assert code == 0, said
            known[workers] = outcome(folder)
        return known[workers]

    return of


@pytest.mark.parametrize(
    ("remote", "number", "step", "workers"),
    [
        (False, signal.SIGTERM, 9, 2),
        (True, signal.SIGTERM, 3, 0),
        pytest.param(True, signal.SIGKILL, 10, 2, marks=pytest.mark.slow),
        pytest.param(False, signal.SIGKILL, 10, 0, marks=pytest.mark.slow),
        pytest.param(True, signal.SIGTERM, 9, 2, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_ended_in_an_epoch_ends_as_any_other(run, reference, tmp_path, remote, number, step, workers):
    """An epoch has 7 steps."""
    code, said = run("ended", remote=remote, workers=workers, die=("torch.optim:SGD.step", step), signal=number)
    assert code == (128 + number if number == signal.SIGTERM else -number), said
    code, said = run("ended", resume=True)
    assert code == 0, said
    assert outcome(tmp_path / "ended") == reference(run, workers)


def test_a_server_that_is_gone_stops_the_run_which_resumes_when_it_is_back(
    run, reference, place, tmp_path, monkeypatch
):
    """In this process, with short pauses. The server answers but for what is asked after the last epoch began."""
    files = place[1]
    monkeypatch.setattr(addresses, "PAUSES", (0.01,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = ["train", *words_for(f"wds:{files.url}/{{train-{{00..02}},test-00}}.tar"), "data.workers=0", "--out"]
    files.requests.clear()
    metamixer(*words, tmp_path / "index")
    first = len(files.requests)
    metamixer(*words, tmp_path / "count")
    files.good, files.failures = len(files.requests) - first - 4, 10**6
    try:
        said = metamixer(*words, tmp_path / "cut", code=75).output
    finally:
        files.failures = 0
    assert "cannot be read after 2 attempts" in said
    assert f"resume with: metamixer train --resume {tmp_path}/cut" in said.replace("\n", " ")
    metamixer("train", "--resume", tmp_path / "cut")
    assert outcome(tmp_path / "cut") == reference(run, 0)


def test_moved_shards(run, place, tmp_path):
    code, said = run("run")
    assert code == 0, said
    folder, _, children = place
    shutil.copytree(folder, tmp_path / "elsewhere")
    where = f"wds:{tmp_path}/elsewhere/*.tar"
    code, said = children.run("evaluate", tmp_path / "run", "--data", where)
    assert code == 0, said
    shards(tmp_path / "elsewhere", (12,), "test", first=300)
    code, said = children.run("evaluate", tmp_path / "run", "--data", where)
    assert code == 65
    assert "the data have changed" in said
    assert "test: other images or labels" in said
    code, said = children.run("evaluate", tmp_path / "run", "--data", f"wds:{tmp_path}/nowhere/*.tar")
    assert code == 65
    assert "no such shards; --data wds:PATTERN says where the data of" in said
