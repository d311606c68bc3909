"""Killed at any moment, a run that is started again ends in the same bits, without manual repair.

R1, R2, R3 and R7 of the list. Every child is a whole ``metamixer train`` in a process group of its own; a kill takes
its data workers too. What is compared: see ``tests.faults.runs.outcome``.
"""

import itertools
import random
import shutil
import signal
import time

import pytest

from metamixer.config.registry import LOSSES, MIXERS
from metamixer.training import checkpoint
from tests.faults.children import Server
from tests.faults.runs import EPOCHS, STEPS, outcome, photos, whole, words

# Where children kill themselves, beside the kills at a moment of the clock: inside a step, an update, an evaluation, a
# checkpoint, a row of the metrics, the clearing up, the start.
PLACES = {
    "metamixer.cohort.cohort:Cohort.forward": 40,
    "torch.optim:SGD.step": EPOCHS * STEPS,
    "torch.nn:Module.eval": 30,
    "torch:save": EPOCHS,
    "safetensors.torch:save_file": EPOCHS,
    "os:fsync": 8 * EPOCHS,
    "os:rename": EPOCHS,
    "os:replace": 3 * EPOCHS,
    "os:mkdir": 3 * EPOCHS,
    "os:unlink": 12,
    "os:rmdir": 3,
    "json:dumps": 8,
    "tensorboardX:SummaryWriter.add_scalar": 30,
    "pathlib:Path.open": 24,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def reference(server, data, tmp_path_factory):
    """What a command comes to that nobody disturbs, and how long it takes."""
    known = {}

    def of(command, **more):
        key = (*map(str, command), *more.items())
        if key not in known:
            folder = tmp_path_factory.mktemp("whole") / "run"
            began = time.monotonic()
            code, text = server.run(*command, "--out", folder, **more)
            assert code == 0, text
            known[key] = outcome(folder), time.monotonic() - began
        return known[key]

    return of


def killed(server, command, folder, times, seconds, draw, expected, **more):
    """Start the command and kill it until so many kills have found it alive; then let it finish.

    A run that ends before it is killed is compared as well, and another one begins.
    """
    command = [*command, "--out", folder, "--resume", "auto"]
    seen, newest, hits = {}, 0, 0
    for _ in range(6 * times):
        if hits == times:
            break
        if draw.random() < 0.6:
            child = server.start(*command, **more)
            time.sleep(draw.random() * seconds)
            child.signal(signal.SIGKILL)
        else:
            place, most = draw.choice(list(PLACES.items()))
            child = server.start(*command, die=(place, draw.randrange(most)), **more)
        code = child.wait()
        assert code in (0, -signal.SIGKILL), child.text()
        if code == 0:
            assert outcome(folder) == expected
            shutil.rmtree(folder)
            seen, newest = {}, 0
            continue
        hits += 1
        for name, bits in whole(folder).items():
            assert seen.setdefault(name, bits) == bits
        found = checkpoint.read_latest(folder / "checkpoints")  # without a warning
        assert newest <= (found.state["step"] if found else 0), "older than before"
        newest = found.state["step"] if found else 0
    assert hits == times, f"{hits} kills found the run alive"
    code, text = server.run(*command, **more)
    assert code == 0, text
    assert outcome(folder) == expected


def partner(loss, mixer):
    """The mixer of a case: where each peer sees other boxes, the loss has to know of it."""
    return "cutnmix" if loss == "cutnmix" else "cutmix" if mixer == "cutnmix" else mixer


KILLS = 7
"""In each of the cases below: 126 in all."""

CASES = [
    (loss, partner(loss, mixer), 2 * (index % 2))
    for index, (loss, mixer) in enumerate(zip(LOSSES, itertools.cycle(MIXERS), strict=False))
]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("loss", "mixer", "workers"), CASES)
def test_killed_again_and_again_every_method_ends_in_the_same_bits(
    server, data, reference, loss, mixer, workers, tmp_path
):
    command, more = words(data, loss, mixer, workers), {"streamed": workers > 0}
    expected, seconds = reference(command, **more)
    draw = random.Random(f"{loss} {mixer}")
    killed(server, command, tmp_path / "run", KILLS, seconds, draw, expected, **more)


def test_a_few_kills(server, data, reference, tmp_path):
    """The sample of the test above that runs every time."""
    command = words(data)
    expected, seconds = reference(command)
    killed(server, command, tmp_path / "run", 3, seconds, random.Random(0), expected)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("begun", [False, True], ids=["new", "resumed"])
def test_killed_at_every_file_that_is_opened_to_be_written(server, data, reference, tmp_path, begun):
    """Each is empty then, and the next start must not stumble over it nor lose what stood there."""
    command = words(data)
    expected, _ = reference(command)
    if begun:
        server.run(*command, "--out", tmp_path / "begun", die=("torch.optim:SGD.step", 7), signal=signal.SIGTERM)
    wrong, number, code = [], 0, -signal.SIGKILL
    while code:
        folder = tmp_path / f"run {number}"
        if begun:
            shutil.copytree(tmp_path / "begun", folder)
        again = [*command, "--out", folder, "--resume", "auto"]
        code, text = server.run(*again, die=("io:open", number), after=True, writing=True)
        assert code in (0, -signal.SIGKILL), text
        done, text = server.run(*again)
        if done or outcome(folder) != expected:
            wrong.append((number, done, text[-200:]))
        shutil.rmtree(folder)
        number += 1
    assert not wrong, wrong
    assert number > 5


@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 2, marks=pytest.mark.slow)],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_at_any_moment_of_training_saves_and_exits_soon(server, data, reference, tmp_path, number, workers):
    """R7, while the first epochs run: the step is finished, its checkpoint written, and the code says which signal.

    The signal goes to the whole process group, as from a terminal: the data workers must live until the step is done.
    """
    command, more = words(data, workers=workers), {"streamed": workers > 0}
    expected, _ = reference(command, **more)
    folder, draw = tmp_path / "run", random.Random(number)
    command = [*command, "--out", folder, "--resume", "auto"]
    child = server.start(*command, **more)
    while not (folder / "metrics.jsonl").exists():  # the trainer listens from here on
        time.sleep(0.001)
    time.sleep(0.02 + 0.1 * draw.random())
    began = time.monotonic()
    child.signal(number)
    code = child.wait()
    assert time.monotonic() - began < 5
    assert code == 128 + number, child.text()
    assert f"stopped by {number.name} after step " in child.text()
    assert "Traceback" not in child.text()
    step = checkpoint.read_latest(folder / "checkpoints").state["step"]
    assert f"after step {step};" in child.text()
    code, text = server.run(*command, **more)
    assert code == 0, text
    assert outcome(folder) == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("loss", "mixer", "workers"), CASES)
def test_stopped_at_five_points_every_method_resumes(server, data, reference, tmp_path, loss, mixer, workers):
    """R2: the first step, the last but one and the last of an epoch, the first of the next, the last of all."""
    command, more = words(data, loss, mixer, workers), {"streamed": workers > 0}
    expected, _ = reference(command, **more)
    steps = checkpoint_steps(expected) // EPOCHS
    for number, step in enumerate([1, steps - 1, steps, steps + 1, EPOCHS * steps]):
        folder = tmp_path / f"run {number}"
        again = [*command, "--out", folder, "--resume", "auto"]
        code, text = server.run(*again, die=("torch.optim:SGD.step", step - 1), signal=signal.SIGTERM, **more)
        assert code == 143, text
        assert checkpoint.read_latest(folder / "checkpoints").state["step"] == step
        code, text = server.run(*again, **more)
        assert code == 0, text
        assert outcome(folder) == expected
        code, text = server.run(*again, **more)  # a finished run stays as it is
        assert code == 0, text
        assert outcome(folder) == expected


def checkpoint_steps(expected):
    """All steps of a finished run."""
    return expected["losses"][-1]["step"]
