"""Every kind of file, compared with networks that are put together here from the checkpoint's own file."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image

import metamixer
from metamixer.config.recipe import Recipe
from metamixer.config.yaml_file import RecipeError
from metamixer.data import DataError, ImageError
from metamixer.export import ExportError, OnnxClassifier, choose, export
from metamixer.export.export import TARGETS
from metamixer.export.model_card import describe, text
from metamixer.export.onnx_file import read_onnx, write_onnx
from metamixer.export.torch_file import write_pt2
from metamixer.export.verify import check, reference
from metamixer.models import build
from metamixer.runs.classifier import Classifier
from metamixer.runs.run import load_data, read_recipe, train
from metamixer.training.checkpoint import pointed

PLACES = re.compile(rb"(?:/home|/root|/tmp|/var|/usr|/Users|/work|site-packages)/")
"""Places of a machine in an exported file."""

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def from_checkpoint(folder, index, name, images):
    """Probabilities (B, 10) float64 of a peer, with nothing of the export's code."""
    weights = safetensors.torch.load_file(pointed(folder / "checkpoints", "LATEST") / "weights.safetensors")
    own = next(key[: -len("classifier.weight")] for key in weights if key.endswith(f"peers.{index}.classifier.weight"))
    network = build(name, num_classes=10, in_channels=1)
    network.load_state_dict({key.removeprefix(own): value for key, value in weights.items() if key.startswith(own)})
    data = load_data(read_recipe(folder))
    mean, std = np.array(data.mean), np.array(data.std)
    pixels = (images.numpy().astype(np.float64) / 255 - mean[0]) / std[0]
    with torch.no_grad():
        return network.double().eval()(torch.from_numpy(pixels)).softmax(-1).numpy()


@pytest.fixture(scope="module")
def test_images(run):
    return load_data(read_recipe(run)).test


@pytest.fixture(scope="module")
def both(by_command):
    return by_command[0]


def test_onnx_of_an_ensemble_says_the_mean_probability_for_any_batch(run, both, test_images):
    session = onnxruntime.InferenceSession(both.path, providers=["CPUExecutionProvider"])
    for count in (1, 2, 7, 33):
        images = test_images.images[:count]
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        expected = (from_checkpoint(run, 0, "resnet8", images) + from_checkpoint(run, 1, "resnet14", images)) / 2
        found = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0 <= both.difference <= both.checked.limit < 1e-2
    assert both.split == "test"
    assert both.checked.images == 12


def test_int8_is_nearly_as_right_and_much_smaller(run, both, test_images):
    small = both.int8
    accuracy = {}
    for name, path in (("float", both.path), ("int8", small.path)):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": test_images.images.numpy()})
        accuracy[name] = logits.argmax(1)
    labels = test_images.labels.numpy()
    assert small.accuracy == pytest.approx((accuracy["float"] == labels).mean())
    assert small.accuracy_int8 == pytest.approx((accuracy["int8"] == labels).mean())
    assert small.agreement == pytest.approx((accuracy["float"] == accuracy["int8"]).mean())
    assert small.agreement < 1  # another file, not the same one twice
    assert abs(small.accuracy - small.accuracy_int8) < 0.04
    assert small.kib_int8 < 0.5 * small.kib
    assert small.path.name == "model-int8.onnx"
    assert small.calibrated == 256
    nodes = onnx.load(small.path).graph.node
    assert "QuantizeLinear" in {node.op_type for node in nodes}
    report = json.loads((run / "report.json").read_text())
    assert small.accuracy == pytest.approx(report["last_epoch"]["ensemble"]["accuracy"], abs=0.002)


def test_metadata_and_cards_say_what_is_inside(run, both):
    recipe, data = read_recipe(run), load_data(read_recipe(run))
    for path in (both.path, both.int8.path):
        model = onnx.load(path)
        assert len(model.graph.input) == 1
        told = {entry.key: entry.value for entry in model.metadata_props}
        assert tuple(json.loads(told["classes"])) == data.classes
        assert json.loads(told["preprocessing"])["mean"] == list(data.mean)
        assert json.loads(told["facts"])["recipe"] == recipe.digest
        assert not list(PLACES.finditer(path.read_bytes()))
        names = [one["name"] for one in json.loads(told["architecture"])["options"]["members"]]
        assert names == ["resnet8", "resnet14"]
    facts = json.loads(both.facts.read_text())
    report = json.loads((run / "report.json").read_text())["last_epoch"]["ensemble"]
    assert facts["figures"]["accuracy"] == report["accuracy"]
    assert facts["training"]["method"] == "dml + none"
    assert facts["license"] == "cc-by-4.0"
    assert facts["files"]["model.onnx"]["bytes"] == both.path.stat().st_size
    assert facts["files"]["model-int8.onnx"]["accuracy_int8"] == both.int8.accuracy_int8
    card = both.card.read_text()
    assert card.startswith("---\nlibrary_name: metamixer\n")
    for words in ('license: "cc-by-4.0"', recipe.digest, f"{100 * report['accuracy']:.2f} %", "Ankle boot", "dml"):
        assert words in card


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("peer", ["best", 0])
def test_what_is_exported_knows_no_place_of_this_machine(to, peer, tmp_path):
    photos = tmp_path / "own photos"
    for name in "ab":
        (photos / name).mkdir(parents=True)
        for number in range(10):
            Image.effect_noise((16, 16), 80).convert("RGB").save(photos / name / f"{number}.png")
    recipe = Recipe.of({"data": {"name": str(photos)}, "peers": ["resnet8", "resnet8"]}, ["train.epochs=1"])
    train(recipe, tmp_path / "run")
    done = export(tmp_path / "run", peer, to, out=tmp_path / "out")
    assert json.loads(done.facts.read_text())["training"]["data"] == "own photos"
    for path in (tmp_path / "run" / "model.safetensors", *done.card.parent.iterdir()):
        content = path.read_bytes()
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        assert not [content[max(0, found.start() - 40) : found.end() + 40] for found in PLACES.finditer(content)], path
        assert str(tmp_path).encode() not in content


def test_an_onnx_file_is_a_classifier(both, test_images):
    found = OnnxClassifier.load(both.path)
    probabilities = found.probabilities(test_images.images[:5])
    assert probabilities.sum(1).allclose(torch.ones(5))
    assert (len(found.classes), found.channels, found.size) == (10, 1, (12, 12))


PHOTOS = {"wide.jpg": (640, 360), "high.png": (90, 150), "turned.jpg": (200, 300), "clear.png": (60, 40)}


def photographs(folder):
    """Images like those of cameras, much larger than the network's: a decoder at a reduced scale shows."""
    for number, (name, (width, height)) in enumerate(PHOTOS.items()):
        rng = np.random.default_rng(number)
        mode = "RGBA" if name == "clear.png" else "RGB"
        rough = Image.fromarray(rng.integers(0, 256, (height // 3, width // 3, len(mode)), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        rough.resize((width, height)).save(folder / name, exif=exif)
    return [folder / name for name in PHOTOS]


ALONE = """
import sys
{compatible}
sys.modules["metamixer"] = None  # importing it fails
{code}
assert not {{{absent}}} & set(sys.modules)
for path in {paths}:
    {each}
    print(json.dumps(shares[0].tolist()))
"""
EACH = {
    "onnxruntime": """logits = session.run(["logits"], {"images": prepare(path)[None]})[0]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()""",
    "timm": """with torch.inference_mode():
        shares = model((torch.from_numpy(prepare(path))[None] / 255 - mean) / std).softmax(1)""",
}


def python_blocks(page, package):
    """The code of a page that prepares images for a package by itself."""
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return [block for block in blocks if "def prepare" in block and f"import {package}\n" in block]


def same_without_this_package(card, package, folder, paths, python=sys.executable):
    """The lines of a card give the probabilities of `predict`, image by image, in a process without metamixer."""
    (code,) = python_blocks(card, package)
    shutil.copy(paths[0], folder / "cat.jpg")
    absent = '"torch"' if package == "onnxruntime" else '"onnxruntime"'
    compatible = ""
    if package == "timm":  # torchvision, which timm imports, may be built for another torch than there is
        source = (ROOT / "src/metamixer/core/torchvision_compat.py").read_text()
        compatible = f"names = {{'__name__': 'compatible'}}; exec({source!r}, names); names['make_importable']()"
    script = ALONE.format(
        compatible=compatible, code=code, absent=absent, paths=[str(path) for path in paths], each=EACH[package]
    )
    done = subprocess.run([python, "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = metamixer.load(next(path for path in folder.iterdir() if path.suffix in (".onnx", ".safetensors")))
    expected = [[found.probabilities[name] for name in model.classes] for found in model.predict(paths)]
    first, *lines = done.stdout.splitlines()
    alone = np.array([json.loads(line) for line in lines])
    np.testing.assert_allclose(alone, expected, atol=2e-6)
    assert np.ptp(alone, axis=0).max() > 0.01
    label, probability = first.rsplit(maxsplit=1)
    assert (label, float(probability)) == (model.classes[alone[0].argmax()], pytest.approx(alone[0].max(), abs=2e-6))


WRITTEN = {"bytes": 1, "difference": 0, "checked_images": 0, "limit": 0}
EXPORT_PAGE = (ROOT / "docs" / "export.md").read_text()


@pytest.mark.parametrize("fit", ["docs", "crop", "letterbox", "squash"])
def test_an_onnx_file_without_this_package_gives_the_same_numbers(run, both, tmp_path, fit):
    paths = photographs(tmp_path)
    if fit in ("docs", "crop"):
        card = EXPORT_PAGE if fit == "docs" else both.card.read_text()
        shutil.copy(both.path, tmp_path / "model.onnx")
    else:
        chosen = choose(run)
        chosen = replace(chosen, classifier=replace(chosen.classifier, fit=fit))
        write_onnx(chosen.classifier, tmp_path / "model.onnx", CPU)
        card = text(describe(chosen, {}, None), {"model.onnx": WRITTEN})
    same_without_this_package(card, "onnxruntime", tmp_path, paths)


def timm_card(run, folder, name, channels=3, size=(32, 48), fit="crop", **options):
    """The card of a network of timm with weights that were drawn, and its file."""
    torch.manual_seed(0)
    drawn = {key: value for key, value in options.items() if key != "pretrained"}
    network = build(name, num_classes=10, in_channels=channels, image_size=size, **drawn)
    for value in network.parameters():
        value.data += 0.05 * torch.randn_like(value)  # a head of zeros tells no images apart
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    chosen = choose(run)
    classifier = replace(
        chosen.classifier, network=network.eval(), name=name, options=options, channels=channels, size=size, fit=fit,
        mean=mean, std=std,
    )  # fmt: skip
    classifier.save(folder / "model.safetensors")
    return text(describe(replace(chosen, classifier=classifier), {}, None), {"model.safetensors": WRITTEN})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("docs", {}),
        ("timm:test_resnet", {"pretrained": True, "drop_rate": 0.1, "fit": "letterbox"}),
        pytest.param("timm:test_resnet", {"channels": 1, "fit": "squash"}, marks=pytest.mark.slow),
        pytest.param("timm:test_vit", {}, marks=pytest.mark.slow),
        pytest.param("timm:test_vit", {"size": (160, 160)}, marks=pytest.mark.slow),
    ],
)
def test_weights_of_timm_without_this_package_give_the_same_numbers(run, tmp_path, name, settings):
    paths = photographs(tmp_path)
    card = timm_card(run, tmp_path, "timm:test_resnet" if name == "docs" else name, **settings)
    same_without_this_package(EXPORT_PAGE if name == "docs" else card, "timm", tmp_path, paths)


def test_cards_of_other_networks_have_no_lines_of_timm(run):
    assert not python_blocks(text(describe(choose(run), {}, None), {"model.safetensors": WRITTEN}), "timm")


ALONE_WITH = {"onnxruntime": ("onnxruntime", "pillow", "numpy"), "timm": ("timm", "safetensors", "pillow", "numpy")}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("package", ALONE_WITH)
def test_in_an_environment_of_these_packages_alone(run, both, tmp_path, package):
    paths = photographs(tmp_path)
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("needs uv")
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, tmp_path / "env"], check=True)
    install = [uv, "pip", "install", "-q", "--python", python, "-c", ROOT / "constraints.txt", *ALONE_WITH[package]]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the packages cannot be installed here: {done.stderr[-300:]}")
    listed = subprocess.run([uv, "pip", "list", "--python", python], capture_output=True, text=True, check=True).stdout
    assert "metamixer" not in listed
    if package == "onnxruntime":
        assert "torch" not in listed
        shutil.copy(both.path, tmp_path / "model.onnx")
        card = both.card.read_text()
    else:
        card = timm_card(run, tmp_path, "timm:test_resnet")
    same_without_this_package(card, package, tmp_path, paths, python)


def test_one_image_or_several_of_any_kind(run, both, tmp_path):
    paths = photographs(tmp_path)
    for where in (run, run / "model.safetensors", both.path):
        model = metamixer.load(where)
        one = model.predict(paths[0])
        assert one.label == max(one.probabilities, key=one.probabilities.get)
        assert one.probability == next(iter(one.probabilities.values()))
        opened = Image.open(paths[0])
        pixels = np.asarray(opened)
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        kinds = [str(paths[0]), opened, pixels, tensor, paths[0].read_bytes()]
        assert [found.probabilities for found in model.predict(kinds)] == [pytest.approx(one.probabilities)] * 5
        assert model.predict(pixels).label == one.label
        assert [each.label for each in model.predict(np.stack([pixels, pixels]))] == [one.label] * 2
        assert model.predict([]) == []
        assert opened.size == (640, 360)  # not closed
    classifier = Classifier.load(run)
    assert classifier.predict(opened).shape == (1, 10)
    assert torch.equal(classifier.predict([opened]), classifier.predict(paths[:1]))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "of NoneType; a path, bytes"),
        ("gone.png", "no such file"),
        (np.zeros((4, 4, 3)), r"an array of float64 \(4, 4, 3\); uint8 or uint16 \(H, W\) or \(H, W, C\)"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"a tensor of uint8 \(8, 8, 3\); uint8 or uint16 \(C, H, W\)"),
        (7, "of int; a path, bytes"),
    ],
)
def test_what_is_no_image_is_one_line(run, image, words):
    for given in ([image], image):
        with pytest.raises(ImageError, match=words):
            metamixer.load(run).predict(given)
    with pytest.raises(DataError, match="no such file"):
        metamixer.load(run / "none")
    with pytest.raises(DataError, match="it is not a run"):
        metamixer.load(run / "checkpoints")


def test_a_changed_weight_is_caught(run, both, tmp_path):
    chosen = choose(run, "ensemble")
    model = onnx.load(both.path)
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4 and each.dims[2] == 3)
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save_model(model, tmp_path / "damaged.onnx")
    right = reference(chosen.classifier, CPU)
    assert check("x", right, read_onnx(both.path, CPU), chosen.data.test, 1e-4).difference < 1e-5
    with pytest.raises(ExportError, match=r"x differs from the network.*0\.0001"):
        check("x", right, read_onnx(tmp_path / "damaged.onnx", CPU), chosen.data.test, 1e-4)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_failed_check_leaves_the_file_of_before_and_nothing_new(run, tmp_path, monkeypatch, value):
    usual = TARGETS["safetensors"]

    def damaged(classifier, path, device):
        usual.write(classifier, path, device)
        weights = safetensors.torch.load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata()
        weights["classifier.bias"] = weights["classifier.bias"] + torch.tensor([value] + [0.0] * 9)
        safetensors.torch.save_file(weights, path, metadata)

    good = export(run, peer=0, to="safetensors", out=tmp_path / "good")
    before = good.path.read_bytes()
    monkeypatch.setitem(TARGETS, "safetensors", replace(usual, write=damaged))
    with pytest.raises(ExportError, match=r"differ by up to (0\.5|nan), and"):
        export(run, peer=0, to="safetensors", out=tmp_path / "good")
    assert good.path.read_bytes() == before
    with pytest.raises(ExportError):
        export(run, peer=0, to="safetensors", out=tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_a_file_for_one_batch_size_is_caught(run):
    chosen = choose(run, "0")
    right = reference(chosen.classifier, CPU)

    def only_one(images):
        if len(images) > 1:
            raise RuntimeError("Got: 3 Expected: 1")
        return right(images)

    with pytest.raises(ExportError, match="does not run on a batch of 3: Got: 3"):
        check("x", right, only_one, chosen.data.test, 1e-4)
    with pytest.raises(ExportError, match=r"returns \(1, 9\) for 1 images, not \(1, 10\)"):
        check("x", right, lambda images: right(images)[:, :9], chosen.data.test, 1e-4)


def test_torch_export_of_a_peer(run, test_images):
    done = export(run, peer=0, to="torch-export")
    assert done.path == run / "export" / "peer-0" / "model.pt2"
    extra = {"metamixer.json": ""}
    network = torch.export.load(done.path, extra_files=extra).module()
    told = json.loads(extra["metamixer.json"])
    assert len(told["classes"]) == 10
    assert told["architecture"]["name"] == "resnet8"
    for count in (1, 5, 20):
        images = test_images.images[:count]
        with torch.no_grad():
            found = network(images).softmax(-1).numpy()
        np.testing.assert_allclose(found, from_checkpoint(run, 0, "resnet8", images), atol=1e-5)
    with zipfile.ZipFile(done.path) as archive:
        assert not any(b"site-packages" in archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize("peer", [0, "ensemble"])
def test_a_program_for_another_device_has_all_its_tensors_there(run, peer, tmp_path):
    """The device ``meta`` stands for a GPU: it needs none, and a tensor that was left on the CPU shows."""
    write_pt2(choose(run, str(peer)).classifier, tmp_path / "model.pt2", torch.device("meta"))
    program = torch.export.load(tmp_path / "model.pt2")
    tensors = [*program.state_dict.values(), *program.constants.values()]
    tensors += [value for node in program.graph.nodes if isinstance(value := node.meta.get("val"), torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert not [node for node in program.graph.nodes if str(node.kwargs.get("device", "meta")) != "meta"]
    for count in (1, 70_000):  # batch normalisation of cuDNN takes up to 65,535 images
        with torch.no_grad():
            logits = program.module()(torch.zeros(count, 1, 12, 12, dtype=torch.uint8, device="meta"))
        assert logits.shape == (count, 10)


def test_an_ensemble_reloads_from_its_own_file(run, tmp_path, test_images):
    done = export(run, peer="ensemble", to="safetensors", out=tmp_path / "two.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"two.safetensors", "two.json", "two.md"}
    loaded = Classifier.load(done.path)
    images = test_images.images[:9]
    expected = (from_checkpoint(run, 0, "resnet8", images) + from_checkpoint(run, 1, "resnet14", images)) / 2
    np.testing.assert_allclose(loaded.probabilities(images).numpy(), expected, atol=1e-5)
    assert loaded.facts["names"] == ["0 resnet8", "1 resnet14"]
    assert done.difference < 1e-6


def test_best_is_the_deployed_network(run, test_images):
    done = export(run, to="safetensors")
    before, after = (safetensors.torch.load_file(path) for path in (run / "model.safetensors", done.path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    deployed = json.loads((run / "report.json").read_text())["deployed"]
    assert json.loads(done.facts.read_text())["figures"]["nll"] == deployed["nll"]


def test_the_leader_is_the_peer_that_the_method_deploys(led):
    chosen = choose(led, "leader")
    assert chosen.members == (2,)
    assert "2 resnet8" in chosen.title
    assert choose(led, "ensemble").members == (0, 1, 2)


def test_branches_and_shadows_come_as_whole_networks(averaged, tmp_path):
    images = load_data(read_recipe(averaged)).test.images[:6]
    assert choose(averaged, "ensemble").members == (0, 1)  # shadows do not learn
    expected = from_shadow = None
    for index in (0, 3):
        done = export(averaged, peer=index, to="safetensors", out=tmp_path / str(index))
        found = Classifier.load(done.path).probabilities(images)
        expected, from_shadow = from_shadow, found
    assert not torch.allclose(expected, from_shadow)
    assert "3 (of 1 resnet8 average)" in done.title
    with pytest.raises(RecipeError, match="pcl deploys the best of the peers 2 and 3"):
        choose(averaged, "leader")
    facts = json.loads(done.facts.read_text())
    peers = json.loads((averaged / "report.json").read_text())["last_epoch"]["peers"]
    assert facts["figures"]["accuracy"] == peers[3]["accuracy"]
    data = load_data(read_recipe(averaged))
    accuracy = (Classifier.load(done.path).probabilities(data.test.images).argmax(1) == data.test.labels).float().mean()
    assert accuracy == pytest.approx(peers[3]["accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"peer": 2}, "no such peer; expected 0 resnet8, 1 resnet14"), ({"peer": "-1"}, "best, leader, ensemble or"),
     ({"peer": "leader"}, "has no leader; expected --peer best"), ({"to": "tflite"}, "safetensors, onnx, torch"),
     ({"to": "hub", "quantize": "int8"}, "expected --to onnx"), ({"tolerance": 0.0}, "a number above 0"),
     ({"to": "onnx", "push": "me/it"}, "goes with --to hub"), ({"to": "onnx", "out": "model.pt2"}, "ends in .onnx"),
     ({"to": "onnx", "device": "cuda"}, "cuda")],
)  # fmt: skip
def test_what_does_not_exist_is_refused_with_what_is_accepted(run, options, words):
    with pytest.raises(RecipeError, match=words):
        export(run, **options)


def test_a_readme_of_somebody_else_stays(run, tmp_path):
    (tmp_path / "README.md").write_text("# My project\n")
    with pytest.raises(RecipeError, match=r"README\.md was not written by metamixer export"):
        export(run, to="safetensors", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_missing_package_names_the_extra(run, monkeypatch):
    monkeypatch.setattr("metamixer.export.errors.find_spec", lambda name: None if name == "onnxruntime" else 1)
    with pytest.raises(RecipeError, match=r"this needs onnxruntime: pip install 'metamixer\[export\]'"):
        export(run, to="onnx")
