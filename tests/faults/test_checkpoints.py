"""Damaged, forged and foreign checkpoints, and full disks: reported in a line, and the last good checkpoint is used.

R4 and R5 of the list. What is compared: see ``tests.faults.runs.outcome``.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from metamixer.training import checkpoint
from metamixer.training.checkpoint import CheckpointError
from tests.command import metamixer
from tests.faults.children import Server
from tests.faults.runs import fingerprint, outcome, photos, words

FILES = ["weights.safetensors", "state.pt", "manifest.json"]
PAGE = b"<!DOCTYPE html><html><body>404</body></html>"
SHARED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

flips = st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
cuts = st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True), st.just(0))
others = st.tuples(st.sampled_from(["zeros", "page", "noise", "longer"]), st.just(0.0), st.integers(0, 99))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run: two whole checkpoints, and one that is the best."""
    folder = tmp_path_factory.mktemp("run") / "run"
    metamixer(*words(data), "--out", folder)
    return folder


@pytest.fixture(scope="module")
def known(run):
    return {path.name: fingerprint(path) for path in (run / "checkpoints").glob("step-*")}


@pytest.fixture(scope="module")
def forged(run, tmp_path_factory):
    """A checkpoint for whose files checksums are forged."""
    folder = tmp_path_factory.mktemp("forged") / "step-00000001-whole"
    return Path(shutil.copytree(latest(run), folder))


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("logs"))
    yield made
    made.close()


def damaged(content, kind, place, number):
    at = int(place * len(content))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ 1 << number]) + content[at + 1 :]
    if kind == "noise":
        return hashlib.shake_256(bytes([number])).digest(len(content))
    return {"cut": content[:at], "zeros": bytes(len(content)), "page": PAGE, "longer": content + b"x"}[kind]


def latest(folder):
    return checkpoint.pointed(folder / "checkpoints", "LATEST")


def seal(path):
    """Make the manifest fit its files again, as somebody who forges them would."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in FILES[:2]:
        content = (path / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (path / "manifest.json").write_text(json.dumps(manifest))


@settings(max_examples=400, suppress_health_check=SHARED)
@given(file=st.sampled_from([*FILES, "LATEST", "BEST"]), damage=flips | cuts | others)
def test_whatever_is_damaged_no_other_weights_come_out(run, known, file, damage):
    folder = run / "checkpoints"
    path = (checkpoint.pointed(folder, "LATEST") / file) if file in FILES else folder / file
    before = path.read_bytes()
    try:
        path.write_bytes(damaged(before, *damage))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = checkpoint.read_latest(folder)
        assert fingerprint(found.path) == known[found.path.name]
        changed = path.read_bytes() != before
        if file in FILES[:2] and changed:
            assert len(said) == 1
            assert str(path) in str(said[0].message)
            assert found.path != path.parent
        if found.path.name == max(known) and file != "LATEST":  # in LATEST a digit can become another one
            assert not said
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage",
    [("cut", 0, 0), ("cut", 0.001, 0), ("cut", 0.5, 0), ("cut", 0.999, 0), ("zeros", 0, 0), ("page", 0, 0), None],
    ids=lambda damage: "gone" if damage is None else f"{damage[0]} {damage[1]}",
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, copy, file, damage):
    path = latest(copy) / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damaged(path.read_bytes(), *damage))
    told = metamixer("evaluate", copy, "--device", "cpu", code=65).stderr
    assert str(path) in told
    assert "Traceback" not in told
    with pytest.warns(UserWarning, match=f"passed over a checkpoint: {path}"):
        metamixer("train", "--resume", copy, "--quiet")
    assert outcome(copy) == outcome(run)
    metamixer("evaluate", copy, "--device", "cpu")


@pytest.mark.parametrize(
    "content", [b"", b"../../x", b"/etc", b"\0", b"\xff\xfe", b"step-1-whole/../..", b"x" * 2**21], ids=range(7)
)
def test_a_damaged_pointer_is_named_and_leads_nowhere(run, copy, content):
    (copy / "checkpoints" / "LATEST").write_bytes(content)
    assert f"{copy / 'checkpoints' / 'LATEST'}" in metamixer("evaluate", copy, "--device", "cpu", code=65).stderr
    with pytest.warns(UserWarning, match="passed over a pointer: .*LATEST"):
        metamixer("train", "--resume", copy, "--quiet")
    assert outcome(copy) == outcome(run)


def test_a_folder_and_a_pipe_in_a_files_place(copy):
    path = latest(copy)
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")  # whoever opens it waits
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoint.read(path)
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()
    with pytest.raises(CheckpointError, match="is not a file"):
        checkpoint.read(path)
    (copy / "checkpoints" / "LATEST").unlink()
    (copy / "checkpoints" / "LATEST").mkdir()
    with pytest.raises(CheckpointError, match="LATEST"):
        checkpoint.pointed(copy / "checkpoints", "LATEST")


def test_nothing_usable_is_refused_and_nothing_is_begun_again(copy):
    for path in (copy / "checkpoints").glob("step-*"):
        (path / "state.pt").write_bytes(b"")
    before = {path: path.read_bytes() for path in copy.rglob("*.*") if path.is_file()}
    with pytest.warns(UserWarning, match="passed over"):
        told = metamixer("train", "--resume", copy, code=65).stderr
    assert "checkpoints in" in told
    assert "is usable" in told
    assert (copy / "checkpoints").is_dir()
    assert before.keys() <= {path for path in copy.rglob("*.*") if path.is_file()}


def test_a_checkpoint_that_no_pointer_names_yet_is_not_resumed(run, copy):
    """A process dies after its first checkpoint and before BEST and LATEST name it: then there is no BEST."""
    folder = copy / "checkpoints"
    (folder / "LATEST").unlink()
    (folder / "BEST").unlink()
    for path in sorted(folder.glob("step-*"))[1:]:
        shutil.rmtree(path)
    assert checkpoint.read_latest(folder) is None
    metamixer("train", "--resume", copy, "--quiet")
    assert outcome(copy) == outcome(run)


def test_a_lost_pointer_is_said(run, copy):
    (copy / "checkpoints" / "LATEST").unlink()
    with pytest.warns(UserWarning, match="LATEST is missing"):
        metamixer("train", "--resume", copy, "--quiet")
    assert outcome(copy) == outcome(run)


def test_while_a_pointer_is_damaged_nothing_is_deleted(copy):
    folder = copy / "checkpoints"
    for number in range(40, 44):
        shutil.copytree(latest(copy), folder / f"step-{number:08d}-whole")
    (folder / "BEST").write_bytes(b"\xff")
    before = set(folder.iterdir())
    checkpoint.prune(folder)
    assert set(folder.iterdir()) == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
described = st.fixed_dictionaries({"bytes": json_values, "sha256": json_values})
manifests = json_values | st.fixed_dictionaries(
    {"schema": st.just(checkpoint.SCHEMA) | json_values},
    optional={
        "step": json_values,
        "files": json_values
        | st.dictionaries(st.sampled_from([*FILES, "../../x", "/etc/passwd", "a\0b"]), json_values | described),
    },
)


@settings(max_examples=200, suppress_health_check=SHARED)
@given(manifest=manifests)
def test_any_manifest_is_refused_in_one_way(run, manifest):
    refused(run, "manifest.json", json.dumps(manifest).encode())


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5,
        '{"a":' * 10**5,
        f'{{"schema": {"9" * 5000}}}',
        '{"schema": 1e999}',
        "\ufeff{}",
        '{"schema": "\\ud800"}',
        "x" * 2**21,
        f'{{"schema": {checkpoint.SCHEMA}, "files": {{"../x": {{"bytes": 0, "sha256": ""}}}}}}',
    ],
    ids=range(8),
)
def test_a_manifest_that_no_parser_likes(run, text):
    refused(run, "manifest.json", text.encode())


def refused(run, name, content):
    path = latest(run)
    before = (path / name).read_bytes()
    try:
        (path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=str(path)) as caught:
            checkpoint.read(path)
        assert len(str(caught.value)) < 1000
    finally:
        (path / name).write_bytes(before)


@settings(max_examples=200, suppress_health_check=SHARED)
@given(damage=flips | cuts | others)
def test_a_state_with_a_forged_checksum_is_refused_or_is_a_state(run, forged, damage):
    (forged / "state.pt").write_bytes(damaged((latest(run) / "state.pt").read_bytes(), *damage))
    seal(forged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has much to say about old formats
        try:
            assert isinstance(checkpoint.read(forged).state, dict)
        except CheckpointError as error:
            assert "state.pt is not a training state" in str(error)  # noqa: PT017  # either will do


def header(value):
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


tensor = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "X", 3]),
        "shape": json_values | st.lists(st.integers(-1, 2**63), max_size=3),
        "data_offsets": json_values | st.lists(st.integers(-1, 2**64), min_size=2, max_size=2),
    }
)


@settings(max_examples=200, suppress_health_check=SHARED)
@given(
    content=st.binary(max_size=64)
    | st.dictionaries(st.text(max_size=9), tensor | json_values, max_size=4).map(header)
    | st.binary(max_size=40).map(header)
    | st.integers(0, 2**64 - 1).map(lambda size: size.to_bytes(8, "little") + b"{}")
)
def test_weights_with_a_forged_checksum_are_refused(run, forged, content):
    shutil.copy(latest(run) / "state.pt", forged)
    (forged / "weights.safetensors").write_bytes(content)
    seal(forged)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors does not fit these networks"):
        checkpoint.read(forged).load_weights(nn.Linear(2, 2))


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("touched by a checkpoint"),)


def test_nothing_in_a_state_is_run(run, copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stream = io.BytesIO()
    torch.save({"step": Evil()}, stream)
    (latest(copy) / "state.pt").write_bytes(stream.getvalue())
    seal(latest(copy))
    with pytest.raises(CheckpointError, match="is not a training state"):
        checkpoint.read(latest(copy))
    assert not Path("touched by a checkpoint").exists()


def test_checkpoints_of_another_recipe_version_and_architecture(run, copy, data, tmp_path):
    other = tmp_path / "other"
    metamixer(*words(data), "peers.0.widths=[4,4,4,4]", "--out", other)
    shutil.rmtree(copy / "checkpoints")
    shutil.copytree(other / "checkpoints", copy / "checkpoints")
    digest = json.loads((latest(run) / "manifest.json").read_text())["recipe"]
    assert f"this run has {digest}" in metamixer("train", "--resume", copy, code=65).stderr
    for path in (copy / "checkpoints").glob("step-*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": digest}))
    told = metamixer("train", "--resume", copy, code=65).stderr
    assert "does not fit these networks" in told
    assert "size mismatch for cohort.peers.0" in told
    for path in (copy / "checkpoints").glob("step-*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.warns(UserWarning, match="has format 99, this version of metamixer reads format"):
        metamixer("train", "--resume", copy, code=65)


@pytest.mark.parametrize("lost", ["step", "optimizer", "sums", "best"])
def test_a_state_without_its_parts_is_refused(copy, lost):
    path = latest(copy)
    state = torch.load(path / "state.pt", weights_only=True)
    del state[lost]
    torch.save(state, path / "state.pt")
    seal(path)
    told = metamixer("train", "--resume", copy, code=65).stderr
    assert str(path) in told


@pytest.mark.slow
def test_a_full_disk_is_reported_and_what_was_done_stays(server, run, data, tmp_path):
    """A limit of the length of files stands in for the disk."""
    folder = tmp_path / "run"
    command = [*words(data), "--out", folder, "--resume", "auto"]
    code, text = server.run(*command, die=("torch.optim:SGD.step", 6), signal=15)
    assert code == 143, text
    last = latest(folder)
    code, text = server.run(*command, limit=20_000)
    assert code == 74, text
    assert f"cannot write the checkpoint {folder / 'checkpoints'}/step-" in text
    assert f"the last good one is {last}" in text
    assert "Traceback" not in text
    assert not list(folder.rglob("*.tmp*"))
    assert latest(folder) == last
    checkpoint.read(last)
    assert server.run(*command)[0] == 0
    assert outcome(folder) == outcome(run)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_disk_that_is_full_anywhere(server, run, data, tmp_path):
    """A real file system of its own, of which some is left: a little more every time, so that each file is the one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]).returncode:
        pytest.skip("no file system can be mounted here")
    codes = []
    try:
        for pages in [*range(0, 24, 2), 30, 40, 60, 80, 100, 120, 150, 200]:
            folder, filler = disk / "run", disk / "filler"
            command = [*words(data), "--out", folder, "--resume", "auto"]
            filler.write_bytes(bytes(os.statvfs(disk).f_bavail * 4096 - pages * 4096))
            code, text = server.run(*command)
            codes.append((pages, code, text[-300:] if code not in (0, 74) or "Traceback" in text else ""))
            filler.unlink()
            done, text = server.run(*command)
            if done or outcome(folder) != outcome(run):
                codes.append((pages, done, f"afterwards: {text[-300:]}"))
            shutil.rmtree(folder)
    finally:
        subprocess.run([shutil.which("umount"), "-l", disk], check=True)
    assert not [found for found in codes if found[2]], codes
    assert {code for _, code, _ in codes} == {0, 74}, codes
