"""Files from elsewhere: nothing in them runs, nothing is written outside of its place, nothing breaks a page.

What runs leaves a file behind: ``Evil`` when it is unpickled, the module ``evil_plugin`` when it is imported.
"""

import ast
import copy
import csv
import hashlib
import http.server
import importlib.metadata
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision.datasets
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError, read_yaml
from metamixer.core import trusted_imports
from metamixer.data import DataError, load
from metamixer.evaluation.robustness.cifar_c import CifarC
from metamixer.evaluation.robustness.corruptions import CORRUPTIONS
from metamixer.models import UnknownModel, build
from metamixer.report import report
from metamixer.runs.classifier import Classifier
from metamixer.studies import Study
from tests.command import metamixer
from tests.report.made import run as written_run
from tests.report.test_page import Page

ROOT = Path(__file__).parents[2]
TINY = ["data.train_limit=20", "--peers", "resnet8,resnet8", "--epochs", "1", "--batch-size", "50", "--device", "cpu"]
TINY += ["--image-size", "12", "--mixer", "none", "--quiet"]


class Evil:
    """Touches its file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    """Is not there at the end of any test that asks for it."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    metamixer("train", *TINY, "--out", folder)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained, tmp_path / "run")


def evil_pickle(path, marker, kind):
    with path.open("wb") as file:
        torch.save({"state": Evil(marker)}, file) if kind == "torch" else pickle.dump({"state": Evil(marker)}, file, 2)
    return path


def told(result):
    """The one line of an error."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.output
    return lines[0]


def test_the_pickle_of_these_tests_does_run(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "it-ran")))
    assert (tmp_path / "it-ran").exists()


# Pickles


@pytest.mark.parametrize("kind", ["torch", "plain"])
@pytest.mark.filterwarnings("ignore:passed over a checkpoint")
def test_a_checkpoint_that_is_a_pickle_with_the_right_checksum(run, marker, kind):
    (run / "report.json").unlink()
    for folder in (run / "checkpoints").glob("step-*"):
        state = evil_pickle(folder / "state.pt", marker, kind)
        manifest = json.loads((folder / "manifest.json").read_text())
        content = state.read_bytes()
        manifest["files"]["state.pt"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    for words in (["train", "--resume", run, "--quiet"], ["evaluate", run], ["export", run, "--peer", "0"]):
        assert "checkpoint" in told(metamixer(*words, code=65))


@pytest.mark.parametrize("kind", ["torch", "plain"])
@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.pkl", "x.bin", "x.safetensors"])
def test_weights_that_are_a_pickle(tmp_path, marker, kind, name):
    path = evil_pickle(tmp_path / name, marker, kind)
    words = ["train", *TINY, "--out", tmp_path / "run", f"peers.0.weights={path}"]
    message = told(metamixer(*words, code=2))
    assert str(path) in message
    assert ("cannot be read" if name == "x.safetensors" else "only .safetensors files are read") in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["torch", "plain"])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.onnx"])
def test_a_model_that_is_a_pickle(run, tmp_path, marker, kind, name):
    path = evil_pickle(tmp_path / name, marker, kind)
    assert str(path) in told(metamixer("predict", path, tmp_path, code=65))
    shutil.copy(path, run / "model.safetensors")
    for words in (["predict", run, tmp_path], ["export", run]):
        assert "model.safetensors" in told(metamixer(*words, code=65))


@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"])
def test_options_of_timm_that_read_files_are_refused(option, tmp_path, marker):
    path = evil_pickle(tmp_path / "x.pth", marker, "torch")
    peer = {"name": "timm:test_resnet", option: str(path)}
    with pytest.raises(RecipeError, match=f"peers.0: .*takes no '{option}' here; .*safetensors"):
        Recipe.of({"peers": [peer, "resnet8"]})
    inside = {"name": "ensemble", "members": [{"name": "timm:test_resnet", "options": {option: str(path)}}]}
    with pytest.raises(RecipeError, match=f"peers.0: .*takes no '{option}' here"):
        Recipe.of({"peers": [inside, "resnet8"]})
    with pytest.raises(UnknownModel, match="takes no 'weights' here"):
        build("torchvision:resnet18", num_classes=2, weights="DEFAULT")


def test_networks_of_a_hub_are_not_fetched(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("timm:hf-hub:someone/net", "timm:local-dir:/tmp/net"):
        with pytest.raises(RecipeError, match="--allow-imports"):
            Recipe.of({"peers": [name, "resnet8"]})


@pytest.mark.parametrize("kind", ["torch", "plain"])
def test_data_that_are_pickles(tmp_path, marker, kind):
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        evil_pickle(tmp_path / "photos" / label / "x.png", marker, kind)
    told_by = metamixer("train", "--data", tmp_path / "photos", "--out", tmp_path / "run", code=65)
    assert "Traceback" not in told_by.output
    hub = tmp_path / "hub"
    hub.mkdir()
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow", "dataset_dict.json"):
        evil_pickle(hub / name, marker, kind)
    assert f"hf:{hub} cannot be opened" in told(metamixer("train", "--data", f"hf:{hub}", code=65))
    processed = tmp_path / "root" / "MNIST" / "processed"  # where torchvision of old kept them
    processed.mkdir(parents=True)
    for name in ("training.pt", "test.pt"):
        evil_pickle(processed / name, marker, kind)
    assert "'mnist' was not found" in told(
        metamixer("train", "--data", "mnist", f"data.root={tmp_path / 'root'}", code=65)
    )


def test_arrays_of_objects_are_not_read(tmp_path, marker):
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for name in ("labels", *CORRUPTIONS):
        np.save(folder / f"{name}.npy", np.array([Evil(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"labels\.npy"):
        CifarC.open(folder, torch.zeros(1, dtype=torch.int64))


# CIFAR: archives and pickles


def cifar(folder, marker=None, count=20):
    """The files of CIFAR-10 with few images, one of which does more than it should."""
    draw = np.random.default_rng(0)
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    listed = []
    for name in ("data_batch_1", "test_batch"):
        batch = {"data": draw.integers(0, 256, (count, 3072), np.uint8), "labels": [k % 10 for k in range(count)]}
        if marker is not None and name == "test_batch":
            batch["more"] = Evil(marker)
        (base / name).write_bytes(pickle.dumps(batch, protocol=3))
        listed.append([name, md5(base / name)])
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {k}" for k in range(10)]}, protocol=3))
    return base, listed, {"filename": "batches.meta", "key": "label_names", "md5": md5(base / "batches.meta")}


def md5(path):
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def published(monkeypatch, listed, meta, archive=None, url=None):
    """As if these files were those that torchvision knows."""
    for name, value in {"train_list": listed[:1], "test_list": listed[1:], "meta": meta}.items():
        monkeypatch.setattr(torchvision.datasets.CIFAR10, name, value)
    if archive is not None:
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "tgz_md5", md5(archive))
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)


def test_cifar_is_read(tmp_path, monkeypatch):
    base, listed, meta = cifar(tmp_path)
    published(monkeypatch, listed, meta)
    data = load("cifar10", root=tmp_path, val_share=0)
    batch = pickle.loads((base / "test_batch").read_bytes())
    assert np.array_equal(data.test.images.numpy().reshape(20, -1), batch["data"])
    assert data.test.labels.tolist() == batch["labels"]
    assert data.classes[3] == "class 3"


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_pickle_of_cifar_with_another_checksum_is_not_opened(tmp_path, monkeypatch, marker, name):
    base, listed, meta = cifar(tmp_path)
    published(monkeypatch, listed, meta)
    evil_pickle(base / name, marker, "plain")
    with pytest.raises(DataError, match="'cifar10' was not found whole in"):
        load("cifar10", root=tmp_path)


def member(name, content=b"", kind=tarfile.REGTYPE, link=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size = kind, link, len(content)
    return made, io.BytesIO(content)


def archive_of(path, *members):
    with tarfile.open(path, "w:gz") as made:
        for info, content in members:
            made.addfile(info, content)
    return path


BASE = "cifar-10-batches-py"
ESCAPES = {
    "traversal": [member("../escaped", b"x")],
    "traversal inside": [member(f"{BASE}/../../escaped", b"x")],
    "absolute": [member("/ABSOLUTE/escaped", b"x")],
    "link to a folder outside": [member(BASE, kind=tarfile.SYMTYPE, link="/ABSOLUTE"), member(f"{BASE}/escaped", b"x")],
    "link to a file outside": [member(f"{BASE}/test_batch", kind=tarfile.SYMTYPE, link="/ABSOLUTE/secret")],
    "hard link": [member(f"{BASE}/test_batch", kind=tarfile.LNKTYPE, link="../secret")],
    "device": [member(f"{BASE}/test_batch", kind=tarfile.CHRTYPE)],
    "pipe": [member(f"{BASE}/test_batch", kind=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("name", ESCAPES)
def test_archives_write_nothing_outside_of_the_folder(tmp_path, monkeypatch, name):
    outside, root = tmp_path / "outside", tmp_path / "outside" / "root"
    root.mkdir(parents=True)
    (outside / "secret").write_bytes(b"secret")
    members = copy.deepcopy(ESCAPES[name])
    for info, _ in members:
        for part in ("name", "linkname"):
            setattr(info, part, getattr(info, part).replace("/ABSOLUTE", str(outside)))
    archive = archive_of(root / "c.tar.gz", *members)
    _, listed, meta = cifar(tmp_path / "made")
    published(monkeypatch, listed, meta, archive, "file:///nowhere")  # it lies there already, with the right checksum
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "filename", "c.tar.gz")
    with pytest.raises(DataError, match=r"'cifar10' was not found whole in .*, and the download failed: "):
        load("cifar10", root=root, download=True)
    assert sorted(path.name for path in outside.iterdir()) == ["root", "secret"]
    assert (outside / "secret").read_bytes() == b"secret"
    assert not [path for path in root.rglob("*") if path.is_symlink() or path.is_fifo()]
    assert tarfile.TarFile.extraction_filter is None


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x1f\x8b" + b"\0" * 20])
def test_what_is_no_archive_is_reported(tmp_path, monkeypatch, content):
    (tmp_path / "c.tar.gz").write_bytes(content)
    _, listed, meta = cifar(tmp_path / "made")
    published(monkeypatch, listed, meta, tmp_path / "c.tar.gz", "file:///nowhere")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "filename", "c.tar.gz")
    with pytest.raises(DataError, match="the download failed: "):
        load("cifar10", root=tmp_path, download=True)


@pytest.fixture
def server(tmp_path):
    """Gives out ``tmp_path/served``."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_download_is_checked_before_it_is_unpacked(tmp_path, monkeypatch, server):
    base, listed, meta = cifar(tmp_path / "made")
    files = [member(f"{base.name}/{path.name}", path.read_bytes()) for path in sorted(base.iterdir())]
    archive = archive_of(tmp_path / "served" / "c.tar.gz", *files)
    published(monkeypatch, listed, meta, archive, f"{server}/c.tar.gz")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "filename", "c.tar.gz")
    root = tmp_path / "inner" / "root"
    data = load("cifar10", root=root, download=True, val_share=0)
    assert len(data.train) == 20
    assert len(load("cifar10", root=root, val_share=0).test) == 20
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")  # another file at the same address
    with pytest.raises(DataError, match="the download failed: File not found or corrupted"):
        load("cifar10", root=tmp_path / "other", download=True)
    assert not (tmp_path / "other" / base.name).exists()


# Recipes


BAD_YAML = {
    "apply": "a: !!python/object/apply:os.system [touch {marker}]",
    "new": "a: !!python/object/new:pathlib.Path.touch [{marker}]",
    "name": "a: !!python/name:os.system",
    "module": "a: !!python/module:os",
    "tuple": "a: !!python/tuple [1]",
    "alias bomb": "a: &a [x,x]\n"
    + "\n".join(f"{chr(98 + k)}: &{chr(98 + k)} [{f'*{chr(97 + k)},' * 9}]" for k in range(9)),
    "twice": "loss: dml\nloss: kdcl",
    "deep": "a: " + "[" * 20_000,
    "deep maps": "{a: " * 5_000,
    "many keys": "{" + ",".join(f"k{n}: 1" for n in range(200_000)) + "}",
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_that_would_do_something(name, tmp_path, marker):
    path = tmp_path / "recipe.yaml"
    path.write_text(BAD_YAML[name].replace("{marker}", str(marker)))
    begun = time.perf_counter()
    assert "recipe.yaml" in told(metamixer("train", path, code=2))
    assert time.perf_counter() - begun < 3
    study = shutil.copy(path, tmp_path / "study.yaml")
    told(metamixer("study", study, code=2))


def test_a_recipe_of_100_megabytes_is_not_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    begun = time.perf_counter()
    with pytest.raises(RecipeError, match="100000000 bytes"):
        read_yaml(path)
    assert time.perf_counter() - begun < 0.2


# Import paths


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A folder with a loss and a network in it, which say so when they are imported; one is in that folder."""
    (tmp_path / "evil_plugin.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('it-ran').touch()\n"
        "from metamixer.losses import DML as Loss\nfrom metamixer.mixers import NoMix as Mixer\n"
        "from metamixer.models import resnet8\n"
        "def net(num_classes, in_channels): return resnet8(num_classes, in_channels)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(trusted_imports.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "evil_plugin", raising=False)
    yield "evil_plugin"
    sys.modules.pop("evil_plugin", None)
    os.environ.pop(trusted_imports.VARIABLE, None)


NAMED = {
    "loss": {"loss": "evil_plugin:Loss"},
    "loss with settings": {"loss": {"name": "evil_plugin:Loss", "temperature": 2}},
    "mixer": {"mixer": {"name": "evil_plugin:Mixer"}},
    "peer": {"peers": ["resnet8", "evil_plugin:net"]},
    "peer that allows itself": {"peers": ["resnet8", {"name": "evil_plugin:net", "allow_imports": True}]},
    "member of an ensemble": {"peers": ["resnet8", {"name": "ensemble", "members": [{"name": "evil_plugin:net"}]}]},
    "member of a member": {
        "peers": [
            "resnet8",
            {
                "name": "ensemble",
                "members": [{"name": "ensemble", "options": {"members": [{"name": "evil_plugin:net"}]}}],
            },
        ]
    },
}


@pytest.mark.parametrize("name", NAMED)
def test_no_file_imports_anything_by_itself(name, plugin, marker, run, tmp_path):
    recipe = {**yaml.safe_load((run / "recipe.yaml").read_text()), **NAMED[name]}
    for path in (tmp_path / "recipe.yaml", run / "recipe.yaml"):
        path.write_text(yaml.safe_dump(recipe))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"recipe": "recipe.yaml", "seeds": [0]}))
    within = {"recipe": {}, "changes": [f"{key}={json.dumps(value)}" for key, value in NAMED[name].items()]}
    (tmp_path / "within.yaml").write_text(yaml.safe_dump({**within, "seeds": [0]}))
    for words in (
        ["train", "recipe.yaml", "--out", "new"],
        ["train", "recipe.yaml", "train.epochs=1", "--out", "new"],
        ["train", "--resume", run],
        ["train", "--resume", "auto", "--out", run],
        ["preview", "recipe.yaml"],
        ["study", "study.yaml"],
        ["study", "within.yaml", "--dry-run"],
        ["evaluate", run],
        ["export", run],
        ["export", run, "--peer", "0"],
    ):
        message = told(metamixer(*words, code=2))
        assert "evil_plugin:" in message
        assert "--allow-imports (in Python allow_imports=True)" in message
    metamixer("report", run, "--out", tmp_path / "report.html")
    assert "No mixing preview: " in (tmp_path / "report.html").read_text()
    metamixer("predict", run, tmp_path, code=65)  # no image there; the network's own file is as it was
    for read in (Recipe.read, Study.read):
        with pytest.raises(RecipeError, match="code from outside of metamixer"):
            read(tmp_path / ("recipe.yaml" if read == Recipe.read else "study.yaml"))
    assert plugin not in sys.modules
    assert trusted_imports.VARIABLE not in os.environ


def spoiled(path, change):
    """A classifier's file whose metadata were changed."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    safetensors.torch.save_file(tensors, path, {**metadata, **change})


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    "architecture",
    [
        {"name": "evil_plugin:net", "options": {}},
        {"name": "evil_plugin:net", "options": {"allow_imports": True}},
        {"name": "ensemble", "options": {"members": [{"name": "evil_plugin:net", "options": {"allow_imports": True}}]}},
        {"name": "timm:local-dir:.", "options": {"pretrained": True}},
        {"name": "timm:test_resnet", "options": {"checkpoint_path": "x.pth"}},
        {"name": "torchvision:resnet18", "options": {"weights": "DEFAULT"}},
    ],
    ids=lambda value: value["name"],
)
def test_no_network_imports_anything_by_itself(architecture, marker, run, tmp_path):
    spoiled(run / "model.safetensors", {"architecture": json.dumps(architecture)})
    with pytest.raises(ValueError, match=r"--allow-imports|takes no"):
        Classifier.load(run / "model.safetensors")
    told(metamixer("predict", run, tmp_path, code=65))
    told(metamixer("predict", run / "model.safetensors", tmp_path, code=65))
    told(metamixer("export", run, code=65))


def test_what_is_typed_or_allowed_is_imported(plugin, tmp_path):
    changes = ["loss=evil_plugin:Loss", "mixer.name=evil_plugin:Mixer", "peers.1.name=evil_plugin:net"]
    typed = [word for word in TINY if word not in ("--peers", "resnet8,resnet8", "--mixer", "none")]
    result = metamixer("train", *typed, *changes, "peers.0=resnet8", "--out", "run")
    assert (tmp_path / "it-ran").exists()
    assert result.exit_code == 0
    assert trusted_imports.VARIABLE not in os.environ, "a command's word counts for this command"
    assert "evil_plugin:Loss" in (tmp_path / "run" / "recipe.yaml").read_text()
    assert metamixer("evaluate", "run", "--quick", code=2).stderr.count("--allow-imports") == 3
    metamixer("evaluate", "run", "--quick", "--allow-imports")
    metamixer("train", "--resume", "run", "--allow-imports", "--quiet")
    metamixer("train", *typed, *changes, "peers.0=resnet8", "--resume", "auto", "--out", "run")
    metamixer("export", "run", "--peer", "1", "--to", "safetensors", "--allow-imports")
    metamixer("report", "run", "--no-pictures", "--out", "r.html")
    (tmp_path / "recipe.yaml").write_text((tmp_path / "run" / "recipe.yaml").read_text())
    assert Recipe.read("recipe.yaml", allow_imports=True).loss.name == "evil_plugin:Loss"
    assert Recipe.read("recipe.yaml").digest, "a name that was allowed once stays so in this process"


def test_the_environment_allows(plugin, monkeypatch):
    for value in ("all", "1", "evil_plugin:Loss", "other:Name evil_plugin:Loss"):
        monkeypatch.setenv(trusted_imports.VARIABLE, value)
        assert trusted_imports.load("evil_plugin:Loss").__name__ == "DML"
    for value in ("", "evil_plugin", "evil_plugin:Los", "evil_plugin:Loss2", "0"):
        monkeypatch.setenv(trusted_imports.VARIABLE, value)
        with pytest.raises(trusted_imports.ImportRefused):
            trusted_imports.load("evil_plugin:Loss")
    monkeypatch.setenv(trusted_imports.VARIABLE, "all")
    for name in ("evil_plugin", "evil_plugin:", ".evil_plugin:Loss", "a b:c", "evil_plugin:Loss()", "evil-plugin:x"):
        with pytest.raises(ImportError):
            trusted_imports.load(name)


def test_objects_need_no_word(monkeypatch):
    from metamixer import DML, Cohort, NoMix, Trainer
    from tests.toys import network

    monkeypatch.delenv(trusted_imports.VARIABLE, raising=False)
    assert Trainer(Cohort([network(0), network(1)], stages=["0", "1"]), NoMix(), DML(), epochs=1, accelerator="cpu")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_runs_of_a_study_know_what_was_allowed(plugin, tmp_path):
    recipe = {"loss": "evil_plugin:Loss", "mixer": "none", "peers": ["resnet8", "resnet8"]}
    changes = ["data.train_limit=10", "data.image_size=12", "train.epochs=1", "train.accelerator=cpu"]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"recipe": recipe, "changes": changes, "seeds": [0]}))
    for name in ("yaml", "torch_xla", "json"):  # must not come before what is installed, nor be found at all
        (tmp_path / f"{name}.py").write_text(f"open('{name}-ran', 'w')\n")
    metamixer("study", "study.yaml", "--allow-imports", "--threads", 1)
    assert (tmp_path / "it-ran").exists()
    assert not list(tmp_path.glob("*-ran.py")) + list(tmp_path.glob("json-ran")) + list(tmp_path.glob("yaml-ran"))


OPTIONAL = (
    "triton torch_xla tensorflow cv2 apex habana_frameworks gdown deepspeed bitsandbytes wandb flash_attn torchao"
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_folder_one_is_in_fills_in_for_nothing(tmp_path):
    for name in (*OPTIONAL.split(), "json", "yaml", "numpy", "datasets"):
        (tmp_path / f"{name}.py").write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    words = ["preview", "--data", "fashion-mini", "--peers", "timm:test_resnet", "data.train_limit=10"]
    code = "from metamixer.cli.app import main; main()"
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "preview.png").exists()
    assert not list(tmp_path.glob("*.ran"))


# Text that is shown

NAMES = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', r"$\frac$", "=cmd|' /C calc'!A0", "../../x",
         "\x1b]0;title\x07\x1b[2J", "[/] [red]", "{{ 7 * 7 }}", "javascript:alert(1)", "\u202egnp.exe"]  # fmt: skip


def test_a_page_of_names_has_the_elements_of_a_harmless_one(tmp_path):
    plain = [f"class {k}" for k in range(len(NAMES))]
    pages = {}
    for kind, classes in (("plain", plain), ("nasty", NAMES)):
        folder = written_run(tmp_path / kind / ("run" if kind == "plain" else '<svg onload="x">'), classes=classes)
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        recipe.setdefault("data", {})["name"] = classes[0] + classes[1]
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        pages[kind] = Page(report([folder], tmp_path / f"{kind}.html", title=classes[0]))
    plain, nasty = pages["plain"], pages["nasty"]
    assert set(nasty.tags) == set(plain.tags)
    assert nasty.attributes == plain.attributes
    assert not [name for name in nasty.attributes if name.startswith("on")]
    assert {link for link in nasty.links if not link.startswith(("#", "data:image/png"))} == set()
    assert nasty.raw == plain.raw
    for name in NAMES[:5]:
        assert name in nasty.text
    assert "\x1b" not in nasty.source
    assert "\u202e" not in nasty.source


def test_names_on_the_terminal_and_in_tables(run, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    spoiled(run / "model.safetensors", {"classes": json.dumps(NAMES)})
    files = tmp_path / "images"
    files.mkdir()
    names = [f"{name.replace('/', '_')}.png" for name in NAMES]
    for name in names:
        Image.new("L", (12, 12), 90).save(files / name)
    for name in NAMES:
        for words in (["predict", run, f"no {name}"], ["evaluate", f"no {name}"], ["train", "--loss", f"no {name}"]):
            result = metamixer(*words, code=65 if words[0] == "predict" else 2)
            assert not {"\x1b", "\x07", "\u202e"} & set(result.output)
    metamixer("predict", run, files, "--out", "p.csv")
    rows = list(csv.reader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == len(names)  # the header, and all but the one that is hidden by its first dot
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "@", "+"))]
    metamixer("export", run, "--peer", "0", "--to", "safetensors")
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside == {"run", "images", "p.csv"}


# Files of networks


def header(content, size=None):
    """A file of safetensors with this header."""
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + bytes(64)


def tensor(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BAD_FILES = {
    "header of 200 MB": header({}, 200_000_000),
    "header longer than the file": header({}, 2**63),
    "overlapping": header({"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])}),
    "beyond the end": header({"a": tensor(0, 4_000_000, [1_000_000])}),
    "overflow": header({"a": tensor(0, 16, [2**40, 2**40])}),
    "unknown type": header({"a": tensor(0, 16, [4], "F33")}),
    "deep": struct.pack("<Q", 40_000) + b"[" * 40_000,
    "empty": b"",
    "text": b"<html>",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_damaged_files_of_weights(name, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(BAD_FILES[name])
    begun = time.perf_counter()
    assert f"{path} cannot be read" in told(metamixer("predict", path, tmp_path, code=65))
    words = ["train", *TINY, "--out", tmp_path / "run", f"peers.0.weights={path}"]
    assert str(path) in told(metamixer(*words, code=2))
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "{"}, "metadata do not describe a network"),
        ({"architecture": "[]"}, "metadata do not describe a network"),
        ({"architecture": json.dumps({"name": 3, "options": {}})}, "metadata do not describe a network"),
        ({"architecture": "[" * 50_000}, "metadata do not describe a network"),
        ({"preprocessing": "{}"}, "metadata do not describe a network"),
        ({"preprocessing": json.dumps({"channels": 1, "size": [-1, 5], "mean": [0], "std": [1]})}, "do not describe"),
        ({"preprocessing": json.dumps({"channels": 1, "size": [5, 5], "mean": [], "std": [1]})}, "do not describe"),
        ({"classes": "[1, 2]"}, "metadata do not describe a network"),
        ({"classes": "[]"}, "metadata do not describe a network"),
        ({"classes": '["a", "b"]'}, "cannot be built with its weights"),
        ({"architecture": json.dumps({"name": "resnet14", "options": {}})}, "cannot be built with its weights"),
        ({"architecture": json.dumps({"name": "resnet8", "options": {"x": 1}})}, "cannot be built with its weights"),
        ({"architecture": json.dumps({"name": "resnet8", "options": {"num_classes": 1}})}, "cannot be built"),
        ({"architecture": json.dumps({"name": "ensemble", "options": {"members": [3]}})}, "cannot be built"),
        ({"architecture": json.dumps({"name": "ensemble", "options": {}})}, "cannot be built"),
        ({"format": "other"}, "is not a classifier of metamixer"),
    ],
)
def test_metadata_that_do_not_fit(change, said, run, tmp_path):
    spoiled(run / "model.safetensors", change)
    assert said in told(metamixer("predict", run, tmp_path, code=65))


@pytest.mark.parametrize("kind", ["extra", "missing", "shape", "type"])
def test_tensors_that_do_not_fit(kind, run, tmp_path):
    path = run / "model.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(path)
    first = next(name for name in tensors if name.endswith("weight"))
    if kind == "extra":
        tensors["extra"] = torch.zeros(3)
    elif kind == "missing":
        del tensors[first]
    elif kind == "shape":
        tensors[first] = torch.zeros(2, 2)
    else:
        tensors[first] = tensors[first].to(torch.float64)
    safetensors.torch.save_file(tensors, path, metadata)
    if kind == "type":  # the same numbers: they are brought to the network's own type
        assert next(Classifier.load(path).network.parameters()).dtype == torch.float32
    else:
        assert "cannot be built with its weights" in told(metamixer("predict", path, tmp_path, code=65))


# What the sources must not have

FORBIDDEN = {"pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen",
             "shutil.unpack_archive", "torch.hub.load", "joblib.load", "marshal.loads"}  # fmt: skip
NAMES_FORBIDDEN = {"eval", "exec", "__import__"}
METHODS_FORBIDDEN = {"extractall", "unpack_archive"}


def faults_of(tree):
    """Calls that read or run what may come from elsewhere."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {key.arg: ast.unparse(key.value) for key in node.keywords}
        if called in FORBIDDEN | NAMES_FORBIDDEN or called.rpartition(".")[2] in METHODS_FORBIDDEN:
            yield node.lineno, called
        if called == "yaml.load" and given.get("Loader") != "_Loader":
            yield node.lineno, "yaml.load without the safe loader"
        if called == "torch.load" and given.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        for key, value in (("allow_pickle", "True"), ("weights_only", "False"), ("shell", "True"),
                           ("trust_remote_code", "True")):  # fmt: skip
            if given.get(key) == value:
                yield node.lineno, f"{key}={value}"


def test_the_sources_run_and_unpickle_nothing():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for folder in ("src", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, what in faults_of(ast.parse(path.read_text()))
    ]
    assert found == []
    importing = [
        path.relative_to(ROOT / "src/metamixer").as_posix()
        for path in sorted((ROOT / "src").rglob("*.py"))
        if "import_module(" in path.read_text()
    ]
    # Names that stand in the package itself; only trusted_imports.py takes one from elsewhere.
    own = {"core/registry.py", "data/files/picture.py", "studies/fork_server.py"}
    assert set(importing) == {*own, "core/trusted_imports.py"}


@pytest.mark.parametrize(
    "code",
    ["eval(x)", "pickle.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)",
     "yaml.load(t, Loader=yaml.Loader)", "yaml.load(t)", "tar.extractall(p)", "subprocess.run(c, shell=True)"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(code):
    assert list(faults_of(ast.parse(code)))


# What is installed

COMPROMISED = {"lightning-fabric": ("2.6.2", "2.6.3"), "lightning": ("2.6.2", "2.6.3"),
               "pytorch-lightning": ("2.6.2", "2.6.3")}  # fmt: skip


def test_known_bad_versions_are_excluded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    named = [Requirement(each) for each in wanted]
    for requirement in named:
        for version in COMPROMISED.get(requirement.name.lower(), ()):
            assert not requirement.specifier.contains(version), f"{requirement} admits {version}"
    assert {"lightning-fabric", "lightning"} <= {each.name for each in named}
    # Data sets with code of their own came to an end with version 4; templates escaped from their sandbox before 3.1.6.
    least = {"datasets": "4", "jinja2": "3.1.6", "torch": "2.6", "pillow": "11"}
    for name, version in least.items():
        (requirement,) = [each for each in named if each.name == name]
        lowest = min(Version(each.version) for each in requirement.specifier if each.operator == ">=")
        assert lowest >= Version(version), requirement


def test_constraints_pin_every_version_and_none_that_is_bad():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip() and line[0] != "#"]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.+!-]*", line), line
    pinned = dict(line.lower().split("==") for line in lines)
    for name, versions in COMPROMISED.items():
        assert pinned[name] not in versions


def script_of(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_audit_says_when_it_looked_at_nothing():
    judge = script_of("audit").judge
    skipped = {"name": "a", "skip_reason": "not found"}
    good, bad = ({"name": "b", "version": "1", "vulns": vulns} for vulns in ([], [{"id": "CVE-1"}]))
    assert judge("no network") == (["not audited: no network"], 0)
    assert judge([skipped])[0][0].startswith("not audited: ")
    assert judge([good, skipped]) == (
        ["1 versions audited, 0 with known vulnerabilities; not known to the service: 1"],
        0,
    )
    assert judge([good, bad]) == (["b 1: CVE-1", "2 versions audited, 1 with known vulnerabilities"], 1)


def test_licences_of_what_is_needed():
    script = ROOT / "scripts" / "licences.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)  # as `make audit` calls it
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("  ")[0].split() for line in done.stdout.splitlines()]
    listed = {row[0].lower() for row in rows if row}
    brought = {"onnxruntime", "datasets", "starlette", "optuna", "sqlalchemy", "tifffile"}  # by extras, or by theirs
    assert {"torch", "numpy", "pillow"} | brought <= listed
    assert not {"pytest", "sphinx"} & listed
    licences = script_of("licences")
    assert licences.absent() <= {"ray"}  # too large for every test environment
    assert licences.denied(licences.licence_of(importlib.metadata.distribution("pillow-heif")))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert declared.keys() > licences._DEVELOPERS
    for text in ("AGPL-3.0-only", "GNU General Public License v3 (GPLv3)", "GPL-2.0-or-later", "SSPL-1.0",
                 "GNU Affero General Public License v3"):  # fmt: skip
        assert licences.denied(text), text
    for text in ("MIT", "BSD-3-Clause AND MIT", "Apache-2.0", "GNU Lesser General Public License v3 (LGPLv3)",
                 "LGPL-2.1-or-later", "MPL-2.0", "PSF-2.0", "GPL-3.0-or-later OR MIT"):  # fmt: skip
        assert not licences.denied(text), text
